package event_test

import (
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/expr"
	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
)

// For events without an envelope, the topic's expressions give id and time.
func TestHeadersOfEventsWithoutAnEnvelope(t *testing.T) {
	s := eventtest.Schema(t, string(harness.ClickSchemas["Click.avsc"].Data))
	e, err := eventtest.Encoder(t, &topology.Topic{
		Name: "clicks", Types: []*codec.Schema{s}, Headers: topology.CloudEvents, Source: "web",
		Bare: &expr.Bare{ID: expr.Source{Text: "id + '/' + string(n)"}, Time: expr.Source{Text: "timestamp(n)"}},
	}, "id")
	if err != nil {
		t.Fatal(err)
	}
	const want = "ce_id=a/60\nce_source=web\nce_specversion=1.0\nce_subject=a\nce_time=1970-01-01T00:01:00Z\nce_type=Click\ncontent-type=application/avro"
	for _, e := range []*event.Encoder{e, e.Clone()} {
		r := pipeline.Record{}
		typ, _, err := e.Encode([]byte(`{"id":"a","n":60}`), &r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := eventtest.HeaderText(r.Headers); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
		if !r.Time.Equal(harness.Now) {
			t.Errorf("the record has the time %v", r.Time)
		}
		own := []pipeline.Header{{Key: "ce_source", Value: []byte("app")}, {Key: "ce_time", Value: []byte("x")}, {Key: "a", Value: []byte("b")}}
		if err := e.SetHeaders(typ, &r, own); err != nil {
			t.Fatal(err)
		}
		const want = "ce_source=app\na=b\nce_id=a/60\nce_specversion=1.0\nce_subject=a\nce_time=1970-01-01T00:01:00Z\nce_type=Click\ncontent-type=application/avro"
		if got := eventtest.HeaderText(r.Headers); got != want {
			t.Errorf("with headers of its own: %s\nwant %s", got, want)
		}
	}
}
