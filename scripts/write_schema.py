"""Writes docs/results.schema.json from perdure.run.results; a test holds both equal."""

import json
from pathlib import Path

from perdure.run import Results

schema = Results.model_json_schema(mode="serialization")
Path("docs/results.schema.json").write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
