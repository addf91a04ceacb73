package producer

import (
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/topology"
)

// What a producer sends to a topic with headers: cloudevents has those of the
// binding, also if it came as plain JSON.
func TestProducersWriteTheHeadersOfATopic(t *testing.T) {
	withHeaders := func(e *event.Encoder) *event.Encoder {
		topic := &topology.Topic{Name: "shop.events", Headers: topology.CloudEvents, Source: "shop"}
		for _, typ := range e.Types {
			topic.Types = append(topic.Types, typ.Schema)
		}
		var err error
		if e.Headers, err = event.NewTopicHeaders(topic); err != nil {
			t.Fatal(err)
		}
		return e
	}
	encoder := withHeaders(eventtest.ShopEncoder(t))
	var r pipeline.Record
	if _, _, err := encoder.Encode([]byte(paidEvent), &r, nil); err != nil {
		t.Fatal(err)
	}
	const core = "ce_specversion=1.0\nce_subject=o-1\nce_time=2026-03-04T05:06:07.089Z\nce_type=OrderPaid\ncontent-type=application/avro"
	if got, want := eventtest.HeaderText(r.Headers), "ce_id="+eventID+"\nce_source=shop\n"+core; got != want {
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
	if got := eventtest.HeaderText(w.records[0].Headers); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
