package producer

import (
	"net/http"
	"reflect"

	"millrace/pipeline/access"
	"millrace/pipeline/openapi"
)

// sentAnswer is the answer to a request whose events are written.
type sentAnswer struct {
	Events []sentEvent `json:"events"`
}

// openAPI returns the OpenAPI 3.1 document of serve. docs/openapi-producer.json is a copy;
// TestAnswersMatchTheOpenAPIDocument compares it, and rewrites it if UPDATE_SCRIPTS=1 is set.
func openAPI() []byte {
	doc := openapi.New(access.Producer, "Millrace producer",
		"Accepts events and writes them to Kafka. A request with an answer 429 or 503, or without one, can be repeated unchanged: an event that was written before is written again with the same id.",
		map[string]string{"sentAnswer": "sent", "fieldFault": "fault"})
	problem := doc.Ref(reflect.TypeFor[problem]())
	doc.Add(http.MethodPost, "/v1/events", describeEvents(doc, problem), problem)
	doc.Add(http.MethodGet, "/v1/openapi.json", openapi.Object{
		"operationId": "getOpenAPI", "summary": "This document",
		"responses": openapi.Object{"200": openapi.Object{
			"description": "This document.", "content": openapi.Object{mediaJSON: openapi.Object{"schema": openapi.Object{"type": "object"}}},
		}},
	}, problem)
	return doc.JSON()
}

// describeEvents returns the operation of an [intake].
func describeEvents(doc *openapi.Document, problem openapi.Object) openapi.Object {
	again := func(text string) openapi.Object {
		r := openapi.Problem(problem, text)
		r["headers"] = openapi.Object{"Retry-After": openapi.Header("Seconds after which to repeat the request.", true)}
		return r
	}
	params := []openapi.Object{}
	for _, p := range [][2]string{
		{"ce-specversion", "1.0 for a CloudEvent in binary mode: the other ce- headers are its attributes, and the body, of a JSON type, is its data."},
		{"ce-id", "Id of a CloudEvent in binary mode."},
		{"ce-source", "Source of a CloudEvent in binary mode."},
		{"ce-type", "Type of a CloudEvent in binary mode."},
		{"ce-time", "Time of a CloudEvent in binary mode."},
		{"traceparent", "Trace context, which becomes a header of the records. Without the right form, it is ignored."},
		{"tracestate", "Further trace context."},
	} {
		params = append(params, openapi.Object{"name": p[0], "in": "header", "description": p[1], "schema": openapi.Object{"type": "string"}})
	}
	event := doc.Define("Event", eventSchema())
	cloud := doc.Define("CloudEvent", cloudSchema())
	many := func(one openapi.Object) openapi.Object {
		return openapi.Object{"type": "array", "items": one, "maxItems": maxEvents}
	}
	body := func(schema openapi.Object, example any) openapi.Object {
		return openapi.Object{"schema": schema, "examples": openapi.Object{"shop": openapi.Object{"summary": "An order of the shop is paid", "value": example}}}
	}
	return openapi.Object{
		"operationId": "sendEvents", "summary": "Send events", "parameters": params,
		"requestBody": openapi.Object{"required": true, "content": openapi.Object{
			mediaJSON:        body(openapi.Object{"oneOf": []openapi.Object{event, many(event)}}, examplePaid()),
			mediaCloudEvent:  body(cloud, exampleCloud()),
			mediaCloudEvents: body(many(cloud), []any{exampleCloud()}),
		}},
		"responses": openapi.Object{
			"200": openapi.Object{"description": "Kafka has acknowledged every event.", "content": openapi.Object{mediaJSON: openapi.Object{"schema": doc.Ref(reflect.TypeFor[sentAnswer]())}}},
			"400": openapi.Problem(problem, "The body or an event is bad. Nothing was sent, except if detail says that Kafka refused events and the others are written."),
			"413": openapi.Problem(problem, "The body is larger than --max-body, or has more than 10000 events. Nothing was sent."),
			"415": openapi.Problem(problem, "The content type, its charset or the encoding is not supported. Nothing was sent."),
			"429": again("Too many requests are in progress. Nothing was sent."),
			"503": again("Kafka has not acknowledged all events, or the keys to encrypt them are not available. Some may be written."),
		},
	}
}

// eventSchema describes events in Millrace's form. Their fields are those that the topology
// declares.
func eventSchema() openapi.Object {
	return openapi.Object{
		"type":        "object",
		"description": "An event as its topic declares it: for topics with an envelope type, data and, optionally, id, timestamp and metadata; for others the fields of the event itself.",
	}
}

// cloudSchema describes CloudEvents in the JSON event format.
func cloudSchema() openapi.Object {
	text := func() openapi.Object { return openapi.Object{"type": "string", "minLength": 1} }
	optional := func() openapi.Object {
		return openapi.Object{"type": []string{"string", "null"}, "minLength": 1}
	}
	return openapi.Object{
		"type":        "object",
		"description": "A CloudEvent 1.0. Its type is an event type of the topology, and its data has the fields of that type. Extensions become metadata.",
		"properties": openapi.Object{
			"specversion":     openapi.Object{"const": "1.0"},
			"id":              text(),
			"source":          text(),
			"type":            text(),
			"time":            openapi.Object{"type": []string{"string", "null"}, "format": "date-time"},
			"subject":         optional(),
			"datacontenttype": openapi.Object{"enum": []any{mediaJSON, nil}, "description": "Or another type that ends with +json."},
			"dataschema":      optional(),
			"data":            openapi.Object{},
			"data_base64":     openapi.Object{"type": "string", "contentEncoding": "base64", "description": "The data as JSON in base64."},
		},
		"required":             []string{"specversion", "id", "source", "type"},
		"oneOf":                []openapi.Object{{"required": []string{"data"}}, {"required": []string{"data_base64"}}},
		"propertyNames":        openapi.Object{"pattern": "^([a-z0-9]+|data_base64)$"},
		"additionalProperties": openapi.Object{"type": []string{"string", "number", "boolean", "null"}},
	}
}

// examplePaid returns an event of the shop.
func examplePaid() openapi.Object {
	return openapi.Object{"type": "OrderPaid", "id": "4707dafd-3ce1-5973-9f7b-1c9c452822e7", "data": openapi.Object{"id": "o-1-000259"}}
}

// exampleCloud returns the same event as a CloudEvent.
func exampleCloud() openapi.Object {
	e := examplePaid()
	e["specversion"], e["source"] = "1.0", "/shop"
	return e
}

// serveOpenAPI returns the handler of the document.
func serveOpenAPI() http.Handler {
	text := openAPI()
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaJSON)
		_, _ = w.Write(text) // an error means that the client is gone
	})
}
