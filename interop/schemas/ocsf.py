"""Reads one question a line, {"class_uid": 6003, "profiles": [...]}, and writes
the JSON Schema that the released OCSF has for it, one line each."""

import json
import sys

from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

schemas = {}
for line in sys.stdin:
    asked = json.loads(line)
    version = asked["version"]
    if version not in schemas:
        schemas[version] = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=version))
    schema = schemas[version]
    name = schema.lookup_class_name_from_uid(class_uid=asked["class_uid"])
    print(json.dumps(schema.get_class_schema(class_name=name, profiles=asked["profiles"])), flush=True)
