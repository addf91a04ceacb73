package event_test

import (
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/expr"
	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
)

// Of events without an envelope the topic's expressions say id and time.
func TestHeadersOfEventsWithoutAnEnvelope(t *testing.T) {
	s := eventtest.SchemaOf(t, string(harness.ClickSchemas["Click.avsc"].Data))
	h, err := event.NewTopicHeaders(&topology.Topic{Name: "clicks", Types: []*codec.Schema{s}, Headers: topology.CloudEvents, Source: "web",
		Bare: &expr.Bare{ID: expr.Source{Text: "id + '/' + string(n)"}, Time: expr.Source{Text: "timestamp(n)"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*event.TopicHeaders{h, h.Clone()} {
		r := pipeline.Record{Value: codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, 1), "a"), 60), Time: time.Now()}
		got, err := h.For(s, &r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := "ce_id=a/60\nce_source=web\nce_specversion=1.0\nce_time=1970-01-01T00:01:00Z\nce_type=Click\ncontent-type=application/avro"; eventtest.HeaderText(got) != want {
			t.Errorf("%s\nwant %s", eventtest.HeaderText(got), want)
		}
	}
}
