package app

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/topology"
)

func headerText(headers []pipeline.Header) string {
	var out []string
	for _, h := range headers {
		out = append(out, fmt.Sprintf("%s=%s", h.Key, h.Value))
	}
	return strings.Join(out, "\n")
}

// What a producer sends to a topic with headers: cloudevents has those of the
// binding, also if it came as plain JSON.
func TestProducersWriteTheHeadersOfATopic(t *testing.T) {
	withHeaders := func(e *eventEncoder) *eventEncoder {
		topic := &topology.Topic{Name: "shop.events", Headers: topology.CloudEvents, Source: "shop"}
		for _, typ := range e.types {
			topic.Types = append(topic.Types, typ.schema)
		}
		var err error
		if e.cloud, err = newTopicHeaders(topic); err != nil {
			t.Fatal(err)
		}
		return e
	}
	encoder := withHeaders(shopEncoder(t))
	var r pipeline.Record
	if _, _, err := encoder.encode([]byte(paidEvent), &r, nil); err != nil {
		t.Fatal(err)
	}
	const core = "ce_specversion=1.0\nce_subject=o-1\nce_time=2026-03-04T05:06:07.089Z\nce_type=OrderPaid\ncontent-type=application/avro"
	if got, want := headerText(r.Headers), "ce_id="+eventID+"\nce_source=shop\n"+core; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	w := &intakeWriter{}
	in := newIntake(t, w)
	for range cap(in.slots) {
		in.slots <- withHeaders(<-in.slots)
	}
	post(t, in, cloudPaid, asCloud, "traceparent: "+trace)
	if len(w.records) != 1 {
		t.Fatalf("%d records", len(w.records))
	}
	// Source, subject and extensions are the sender's.
	want := "traceparent=" + trace + "\nce_n=7\nce_source=/shop\nce_subject=o-1\nce_id=" + eventID +
		"\nce_specversion=1.0\nce_time=2026-01-02T03:04:05Z\nce_type=OrderPaid\ncontent-type=application/avro"
	if got := headerText(w.records[0].Headers); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// Of events without an envelope the topic's expressions say id and time.
func TestHeadersOfEventsWithoutAnEnvelope(t *testing.T) {
	s := schemaOf(t, string(clicks["Click.avsc"].Data))
	h, err := newTopicHeaders(&topology.Topic{Name: "clicks", Types: []*codec.Schema{s}, Headers: topology.CloudEvents, Source: "web",
		Bare: &expr.Bare{ID: text("id + '/' + string(n)"), Time: text("timestamp(n)")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*topicHeaders{h, h.clone()} {
		r := pipeline.Record{Value: codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, 1), "a"), 60), Time: time.Now()}
		got, err := h.of(s, &r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := "ce_id=a/60\nce_source=web\nce_specversion=1.0\nce_time=1970-01-01T00:01:00Z\nce_type=Click\ncontent-type=application/avro"; headerText(got) != want {
			t.Errorf("%s\nwant %s", headerText(got), want)
		}
	}
}
