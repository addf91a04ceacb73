package query

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"
)

func (a *api) serveDocument(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	a.write(w, r, a.document)
}

type object = map[string]any

// OpenAPI returns the API's description, made of the routes and of the types of
// their answers. docs/openapi.json is a copy.
func OpenAPI() []byte {
	schemas := object{}
	refTo(schemas, reflect.TypeFor[problemAnswer]())
	for _, t := range []reflect.Type{reflect.TypeFor[feedSnapshot](), reflect.TypeFor[feedFrontier](), reflect.TypeFor[feedStalled](), reflect.TypeFor[feedEnd]()} {
		refTo(schemas, t)
	}
	paths := object{}
	for _, r := range routes() {
		var params []object
		for _, p := range r.params {
			params = append(params, p.describe())
		}
		ok := object{"description": r.summary + "."}
		switch {
		case r.answer != nil:
			ok["content"] = object{"application/json": object{"schema": refTo(schemas, reflect.TypeOf(r.answer))}}
		case strings.HasSuffix(r.path, "/feed"):
			ok["description"] = "Messages of four kinds, told apart by event: snapshot (FeedSnapshot), frontier (FeedFrontier), stalled (FeedStalled) and end (FeedEnd). The id of a message is where to go on, for Last-Event-ID, at any worker. Changes of a partition come in the order of the log; those of two partitions come in any order."
			ok["content"] = object{"text/event-stream": object{"schema": object{"type": "string"}}}
		default:
			ok["content"] = object{"application/json": object{"schema": object{"type": "object"}}}
		}
		problem := object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}}
		responses := object{"200": ok, "default": object{"description": "A problem as in RFC 9457.", "content": problem}}
		for status, text := range r.also {
			one := object{"description": text}
			if status >= 400 {
				one["content"] = problem
			}
			responses[strconv.Itoa(status)] = one
		}
		op := object{"operationId": r.name, "summary": r.summary, "responses": responses}
		if len(params) > 0 {
			op["parameters"] = params
		}
		paths[r.path] = object{strings.ToLower(r.verb()): op}
	}
	doc, err := json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Millrace projector", "version": "1",
			"description": "Questions about projections. Any worker of a group answers for all of them, or says that it cannot: never with a part. HEAD works wherever GET does. A parameter that is not known is an error.",
		},
		"paths":      paths,
		"components": object{"schemas": schemas},
	}, "", "  ")
	if err != nil {
		panic(err) // strings and numbers
	}
	return append(doc, '\n')
}

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

// refTo returns a reference to the schema of a struct, which it adds to those
// there are.
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
		schemas[name] = schema // before its fields, which may have it in them
		properties, required := object{}, []string{}
		addFields(schemas, t, properties, &required)
		schema["properties"] = properties
		if len(required) > 0 {
			schema["required"] = required
		}
	}
	return object{"$ref": "#/components/schemas/" + name}
}

// addFields adds the fields of a struct as JSON has them: those of an embedded
// struct are its own.
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
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
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
