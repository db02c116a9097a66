"""The jobs under OpenAI's path for its clients: `client.batches` lists, retrieves and cancels them.

They are made by POST /jobs, for OpenAI's own way takes a file that was uploaded before.
"""

from fastapi import APIRouter, Response

from lightmem_serve import routes_jobs
from lightmem_serve.errors import documented_for_openai

router = APIRouter(prefix="/v1", tags=["jobs"])
list_ = {"dependencies": [routes_jobs.reads], "responses": documented_for_openai()}
one = {"dependencies": [routes_jobs.reads], "responses": documented_for_openai(404)}
stop = {"dependencies": [routes_jobs.writes], "responses": documented_for_openai(404, 409)}
file = {"response_class": Response, "responses": {**one["responses"], **routes_jobs.LINES}}

router.get("/batches", **list_)(routes_jobs.list_jobs)
router.get("/batches/{job_id}", **one)(routes_jobs.get_job)
router.post("/batches/{job_id}/cancel", **stop)(routes_jobs.cancel_job)
router.get("/files/{job_id}/content", **{**one, **file})(routes_jobs.job_errors)
