package cases

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// fakeRegistry replaces the schema registry. The id of a schema is its index plus 1.
type fakeRegistry struct{ schemas []*codec.Schema }

// Schema returns a schema by id, for decoders.
func (g *fakeRegistry) Schema(_ context.Context, ref codec.SchemaRef) (*codec.Schema, error) {
	if ref.ByGUID || ref.ID < 1 || ref.ID > len(g.schemas) {
		return nil, pipeline.Reject(pipeline.ReasonUnknownSchema, "there is no schema %s", ref)
	}
	return g.schemas[ref.ID-1], nil
}

// id returns the id of a schema and registers it if needed.
func (g *fakeRegistry) id(s *codec.Schema) int {
	i := slices.IndexFunc(g.schemas, func(have *codec.Schema) bool { return have == s })
	if i < 0 {
		i = len(g.schemas)
		g.schemas = append(g.schemas, s)
	}
	return i + 1
}

// cannedAnswers replaces the services that stages call.
type cannedAnswers []caseAnswer

// RoundTrip implements [http.RoundTripper]. A request without an answer in the case
// gets status 400.
func (g cannedAnswers) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer func() { _ = req.Body.Close() }() // the contract of RoundTripper
	}
	url := req.URL.String()
	a := caseAnswer{status: http.StatusBadRequest, body: fmt.Appendf(nil, "the case has no answer to %s %s", req.Method, url)}
	for _, given := range g {
		if given.method == req.Method && given.url == url {
			a = given
			break
		}
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: req,
	}, nil
}
