// Package schemas checks what the projections make against the schemas as their
// owners publish them: ECS by the field table of @elastic/ecs, OCSF by the JSON
// Schemas that ocsf-json-schema makes of the released one. Nothing of either is
// copied here; `make deps` installs both.
package schemas
