package event_test

import (
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyformat"
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
		if _, _, err := e.Encode([]byte(`{"id":"a","n":60}`), &r, nil); err != nil {
			t.Fatal(err)
		}
		if got := eventtest.HeaderText(r.Headers); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
		if !r.Time.Equal(harness.Now) {
			t.Errorf("the record has the time %v", r.Time)
		}
		own := []pipeline.Header{{Key: "ce_source", Value: []byte("app")}, {Key: "ce_time", Value: []byte("x")}, {Key: "a", Value: []byte("b")}}
		if _, _, err := e.EncodeWith(own, []byte(`{"id":"a","n":60}`), &r, nil); err != nil {
			t.Fatal(err)
		}
		const want = "ce_source=app\na=b\nce_id=a/60\nce_specversion=1.0\nce_subject=a\nce_time=1970-01-01T00:01:00Z\nce_type=Click\ncontent-type=application/avro"
		if got := eventtest.HeaderText(r.Headers); got != want {
			t.Errorf("with headers of its own: %s\nwant %s", got, want)
		}
	}
}

// The expressions of a topic may read the key and the headers that a record is sent with.
func TestHeadersOfEventsWhoseIDIsInTheRecord(t *testing.T) {
	s := eventtest.Schema(t, string(harness.ClickSchemas["Click.avsc"].Data))
	keys := keyformat.Format{Kind: keyformat.Avro, Schema: eventtest.Schema(t, `"string"`)}
	e, err := eventtest.Encoder(t, &topology.Topic{
		Name: "clicks", Types: []*codec.Schema{s}, Headers: topology.CloudEvents, Source: "web", KeyFormat: keys,
		Bare: &expr.Bare{ID: expr.Source{Text: "headers.ref + '/' + key"}, RecordKey: metadata.KeyOf(keys)},
	}, "id")
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"1", "2"} {
		r := pipeline.Record{}
		if _, _, err := e.EncodeWith([]pipeline.Header{{Key: "ref", Value: []byte(ref)}}, []byte(`{"id":"a","n":60}`), &r, nil); err != nil {
			t.Fatal(err)
		}
		if id, _ := r.Header("ce_id"); string(id) != ref+"/a" {
			t.Errorf("ce_id is %q", id)
		}
	}
	if _, _, err := e.Encode([]byte(`{"id":"a","n":60}`), &pipeline.Record{}, nil); err == nil || !strings.Contains(err.Error(), "ref") {
		t.Errorf("without the header: %v", err)
	}
}
