package query

import (
	"math"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"millrace/pipeline/access"
	"millrace/pipeline/openapi"
)

func (a *api) serveDocument(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	a.write(w, r, a.document)
}

type object = openapi.Object

// OpenAPI returns the OpenAPI 3.1 document of the API. It is generated from the
// routes and the types of their answers. docs/openapi.json is a copy. A test of
// pipeline/projector/reader compares it, and rewrites it if UPDATE_SCRIPTS=1 is set.
func OpenAPI() []byte {
	doc := openapi.New(access.Projector, "Millrace projector",
		"Reads projections. Any worker of a group can answer any request; it returns a complete answer or an error, never a part. HEAD works wherever GET does. Unknown parameters are errors.",
		map[string]string{"item": "aggregate", "problemAnswer": "problem"})
	problem := doc.Ref(reflect.TypeFor[problemAnswer]())
	for _, t := range []reflect.Type{reflect.TypeFor[feedSnapshot](), reflect.TypeFor[feedFrontier](), reflect.TypeFor[feedStalled](), reflect.TypeFor[feedEnd]()} {
		doc.Ref(t)
	}
	for _, r := range routes() {
		doc.Add(r.verb(), r.path, r.describe(doc, problem), problem)
	}
	return doc.JSON()
}

// describe returns the route's OpenAPI operation. It adds the schemas of its answer to the
// document.
func (r *route) describe(doc *openapi.Document, problem object) object {
	ok := object{"description": r.summary + "."}
	switch {
	case r.answer != nil:
		ok["content"] = object{"application/json": object{"schema": doc.Ref(reflect.TypeOf(r.answer))}}
	case strings.HasSuffix(r.path, "/feed"):
		ok["description"] = "A stream of messages. The event field holds the kind: snapshot (FeedSnapshot), frontier (FeedFrontier), stalled (FeedStalled) or end (FeedEnd). The id of a message can be sent as Last-Event-ID to any worker to resume after the message. Changes of one partition arrive in the order of the log; there is no order between partitions."
		ok["content"] = object{"text/event-stream": object{"schema": object{"description": "OpenAPI 3.1 has no schemas of single messages."}}}
	default:
		ok["content"] = object{"application/json": object{"schema": object{"type": "object"}}}
	}
	responses := object{"200": ok}
	for status, text := range r.also {
		if status < 400 {
			responses[strconv.Itoa(status)] = object{"description": text}
		} else {
			responses[strconv.Itoa(status)] = openapi.Problem(problem, text)
		}
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
		schema = object{"type": "string", "pattern": `^\+?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$`}
	case "integer":
		schema["minimum"], schema["maximum"] = p.least, math.MaxInt64
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
