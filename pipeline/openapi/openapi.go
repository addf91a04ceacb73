// Package openapi makes the OpenAPI 3.1 documents of the programs' HTTP APIs: schemas from
// the types of answers, and for each route the callers it needs and the answers that the
// server gives before the handler.
//
// The goroutine that makes a [Document] owns it.
package openapi

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/access"
)

// Object is a JSON object.
type Object = map[string]any

// A Document is an OpenAPI document.
type Document struct {
	program string
	info    Object
	names   map[string]string // names of schemas, for types that have another name
	schemas Object
	paths   Object
}

// New returns an empty document of a program, which access.Routes knows. names maps the
// names of types to those of their schemas, where they differ.
func New(program, title, description string, names map[string]string) *Document {
	return &Document{
		program: program, names: names, schemas: Object{}, paths: Object{},
		info: Object{"title": title, "version": "1", "description": description},
	}
}

// Add adds an operation. problem is the schema of its errors. Responses of the operation
// replace those that the server gives for every route.
func (d *Document) Add(method, path string, op, problem Object) {
	responses := d.guarded(method, problem)
	own, _ := op["responses"].(Object)
	for status, r := range own {
		responses[status] = r
	}
	op["responses"] = responses
	op["security"] = d.security(method + " " + path)
	item, _ := d.paths[path].(Object)
	if item == nil {
		item = Object{}
		d.paths[path] = item
	}
	item[strings.ToLower(method)] = op
}

// Header returns the object of a header of an answer.
func Header(description string, required bool) Object {
	return Object{"description": description, "required": required, "schema": Object{"type": "string"}}
}

// Problem returns a response with problem details of a schema.
func Problem(schema Object, description string) Object {
	return Object{"description": description, "content": Object{"application/problem+json": Object{"schema": schema}}}
}

// guarded returns the responses of the server of package server, whatever the route.
func (d *Document) guarded(method string, problem Object) Object {
	out := Object{"default": Problem(problem, "Problem details (RFC 9457).")}
	for status, text := range map[int]string{
		http.StatusUnauthorized:          "The request names no caller, or one that is not known.",
		http.StatusForbidden:             "The caller lacks the role, or the request is one of a page on another site.",
		http.StatusRequestEntityTooLarge: "The body is too large. GET takes none.",
		http.StatusUnsupportedMediaType:  "The body has a Content-Encoding, which no route takes.",
		http.StatusMisdirectedRequest:    "The server does not answer for the host of the request: see --allow-host.",
	} {
		out[strconv.Itoa(status)] = Problem(problem, text)
	}
	if method == http.MethodPost {
		out["413"] = Problem(problem, "The body is too large.")
	}
	out["401"].(Object)["headers"] = Object{"WWW-Authenticate": Header("How a caller can name itself.", true)}
	return out
}

// security returns the alternatives by which a caller of a pattern names itself, with the
// role that it needs.
func (d *Document) security(pattern string) []Object {
	for _, r := range access.Routes() {
		if r.Program == d.program && r.Pattern == pattern {
			return []Object{{"token": []access.Role{r.Role}}, {"certificate": []access.Role{r.Role}}}
		}
	}
	return nil // openapitest compares the routes
}

// JSON returns the document.
func (d *Document) JSON() []byte {
	doc, err := json.MarshalIndent(Object{
		"openapi": "3.1.0",
		"info":    d.info,
		"paths":   d.paths,
		"components": Object{"schemas": d.schemas, "securitySchemes": Object{
			"token":       Object{"type": "http", "scheme": "bearer", "description": "A token of the program's --auth-file. Without that file, callers on the program's machine need none."},
			"certificate": Object{"type": "mutualTLS", "description": "A client certificate that the file names."},
		}},
	}, "", "  ")
	if err != nil {
		panic(err) // cannot happen: only strings and numbers
	}
	return append(doc, '\n')
}

// Define adds a schema with a name, and returns a reference to it.
func (d *Document) Define(name string, schema Object) Object {
	d.schemas[name] = schema
	return Object{"$ref": "#/components/schemas/" + name}
}

// Ref returns a reference to the schema of a struct. It adds the schema if it is missing.
// The tags json and doc of its fields say how they are named and described.
func (d *Document) Ref(t reflect.Type) Object {
	name := t.Name()
	if other := d.names[name]; other != "" {
		name = other
	}
	name = strings.ToUpper(name[:1]) + name[1:]
	if d.schemas[name] == nil {
		schema := Object{"type": "object", "additionalProperties": false}
		d.schemas[name] = schema // set before the fields, because a type may contain itself
		properties, required := Object{}, []string{}
		d.addFields(t, properties, &required)
		schema["properties"] = properties
		if len(required) > 0 {
			schema["required"] = required
		}
	}
	return Object{"$ref": "#/components/schemas/" + name}
}

// addFields adds the fields of a struct under their JSON names. Fields of an embedded
// struct are added as fields of the outer one, as encoding/json does.
func (d *Document) addFields(t reflect.Type, properties Object, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			d.addFields(f.Type, properties, required)
			continue
		case name == "-":
			continue
		}
		schema := d.schemaOf(f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			schema["description"] = doc
		}
		properties[name] = schema
		if options != "omitempty" {
			*required = append(*required, name)
		}
	}
}

func (d *Document) schemaOf(t reflect.Type) Object {
	switch {
	case t == reflect.TypeFor[pipeline.Time]():
		return Object{"oneOf": []Object{{"type": "string", "format": "date-time"}, {"type": "integer", "description": "Microseconds since 1970, for a time outside the years 0 to 9999."}}}
	case t == reflect.TypeFor[json.RawMessage]():
		return Object{} // anything
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.schemaOf(t.Elem())
	case reflect.String:
		return Object{"type": "string"}
	case reflect.Bool:
		return Object{"type": "boolean"}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return Object{"type": "integer"}
	case reflect.Float64:
		return Object{"type": "number"}
	case reflect.Slice:
		return Object{"type": "array", "items": d.schemaOf(t.Elem())}
	case reflect.Map:
		return Object{"type": "object", "additionalProperties": d.schemaOf(t.Elem())}
	}
	return d.Ref(t)
}
