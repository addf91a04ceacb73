package query

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/access"
)

func (a *api) serveDocument(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	a.write(w, r, a.document)
}

type object = map[string]any

// OpenAPI returns the OpenAPI 3.1 document of the API. It is generated from the
// routes and the types of their answers. docs/openapi.json is a copy. A test of
// pipeline/projector/reader compares it, and rewrites it if UPDATE_SCRIPTS=1 is set.
func OpenAPI() []byte {
	schemas := object{}
	refTo(schemas, reflect.TypeFor[problemAnswer]())
	for _, t := range []reflect.Type{reflect.TypeFor[feedSnapshot](), reflect.TypeFor[feedFrontier](), reflect.TypeFor[feedStalled](), reflect.TypeFor[feedEnd]()} {
		refTo(schemas, t)
	}
	paths := object{}
	for _, r := range routes() {
		op := r.describe(schemas)
		op["security"] = security(r.pattern())
		paths[r.path] = object{strings.ToLower(r.verb()): op}
	}
	doc, err := json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Millrace projector", "version": "1",
			"description": "Reads projections. Any worker of a group can answer any request; it returns a complete answer or an error, never a part. HEAD works wherever GET does. Unknown parameters are errors.",
		},
		"paths": paths,
		"components": object{"schemas": schemas, "securitySchemes": object{
			"token":       object{"type": "http", "scheme": "bearer", "description": "A token of the projector's --auth-file. Without that file, callers on the projector's machine need none."},
			"certificate": object{"type": "mutualTLS", "description": "A client certificate that the file names."},
		}},
	}, "", "  ")
	if err != nil {
		panic(err) // cannot happen: only strings and numbers
	}
	return append(doc, '\n')
}

// security returns the alternatives by which a caller of a pattern names itself, with the
// role that it needs.
func security(pattern string) []object {
	for _, r := range access.Routes() {
		if r.Program == access.Projector && r.Pattern == pattern {
			return []object{{"token": []access.Role{r.Role}}, {"certificate": []access.Role{r.Role}}}
		}
	}
	return nil // a test compares the routes
}

// describe returns the route's OpenAPI operation. It adds the schemas of its answer
// to schemas.
func (r *route) describe(schemas object) object {
	ok := object{"description": r.summary + "."}
	switch {
	case r.answer != nil:
		ok["content"] = object{"application/json": object{"schema": refTo(schemas, reflect.TypeOf(r.answer))}}
	case strings.HasSuffix(r.path, "/feed"):
		ok["description"] = "A stream of messages. The event field holds the kind: snapshot (FeedSnapshot), frontier (FeedFrontier), stalled (FeedStalled) or end (FeedEnd). The id of a message can be sent as Last-Event-ID to any worker to resume after the message. Changes of one partition arrive in the order of the log; there is no order between partitions."
		ok["content"] = object{"text/event-stream": object{"schema": object{"type": "string"}}}
	default:
		ok["content"] = object{"application/json": object{"schema": object{"type": "object"}}}
	}
	problem := object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}}
	responses := object{"200": ok, "default": object{"description": "Problem details (RFC 9457).", "content": problem}}
	for status, text := range r.also {
		one := object{"description": text}
		if status >= 400 {
			one["content"] = problem
		}
		responses[strconv.Itoa(status)] = one
	}
	op := object{"operationId": r.name, "summary": r.summary, "responses": responses}
	var params []object
	for _, p := range r.params {
		params = append(params, p.describe())
	}
	if len(params) > 0 {
		op["parameters"] = params
	}
	return op
}

// describe returns the parameter's OpenAPI object.
func (p param) describe() object {
	schema := object{"type": p.kind}
	switch p.kind {
	case "date-time":
		schema = object{"type": "string", "format": "date-time"}
	case "duration":
		schema = object{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ms|s))+$`}
	case "integer":
		schema["minimum"] = p.least
		if p.most > 0 {
			schema["maximum"] = p.most
		}
	}
	if p.name == "limit" {
		schema["default"] = defaultLimit
	}
	out := object{"name": p.name, "in": p.in, "description": p.doc, "schema": schema}
	if p.example != nil {
		out["example"] = p.example
	}
	if p.required {
		out["required"] = true
	}
	return out
}

// refTo returns a reference to the schema of a struct. It adds the schema to schemas
// if it is missing.
func refTo(schemas object, t reflect.Type) object {
	name := t.Name()
	switch name {
	case "item":
		name = "aggregate"
	case "problemAnswer":
		name = "problem"
	}
	name = strings.ToUpper(name[:1]) + name[1:]
	if schemas[name] == nil {
		schema := object{"type": "object", "additionalProperties": false}
		schemas[name] = schema // set before the fields, because a type may contain itself
		properties, required := object{}, []string{}
		addFields(schemas, t, properties, &required)
		schema["properties"] = properties
		if len(required) > 0 {
			schema["required"] = required
		}
	}
	return object{"$ref": "#/components/schemas/" + name}
}

// addFields adds the fields of a struct under their JSON names. Fields of an embedded
// struct are added as fields of the outer one, as encoding/json does.
func addFields(schemas object, t reflect.Type, properties object, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			addFields(schemas, f.Type, properties, required)
			continue
		case name == "-":
			continue
		}
		schema := schemaOf(schemas, f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			schema["description"] = doc
		}
		properties[name] = schema
		if options != "omitempty" {
			*required = append(*required, name)
		}
	}
}

func schemaOf(schemas object, t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[pipeline.Time]():
		return object{"oneOf": []object{{"type": "string", "format": "date-time"}, {"type": "integer", "description": "Microseconds since 1970, for a time outside the years 0 to 9999."}}}
	case t == reflect.TypeFor[json.RawMessage]():
		return object{} // anything
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(schemas, t.Elem())
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice:
		return object{"type": "array", "items": schemaOf(schemas, t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": schemaOf(schemas, t.Elem())}
	}
	return refTo(schemas, t)
}
