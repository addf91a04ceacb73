package producer

import (
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/topology"
)

// Every record on a topic with CloudEvents headers has them, also if the event came
// as plain JSON.
func TestProducersWriteTheHeadersOfATopic(t *testing.T) {
	topic := eventtest.ShopTopic(t)
	topic.Headers, topic.Source = topology.CloudEvents, "shop"
	encoder, err := eventtest.Encoder(t, topic, "data.id")
	if err != nil {
		t.Fatal(err)
	}
	var r pipeline.Record
	if _, _, err := encoder.Encode([]byte(paidEvent), &r, nil); err != nil {
		t.Fatal(err)
	}
	const core = "ce_specversion=1.0\nce_subject=o-1\nce_time=2026-03-04T05:06:07.089Z\nce_type=OrderPaid\ncontent-type=application/avro"
	if got, want := eventtest.HeaderText(r.Headers), "ce_id="+eventID+"\nce_source=shop\n"+core; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	w := &intakeWriter{}
	post(t, newIntakeWith(encoder, w), cloudPaid, asCloud, "traceparent: "+trace)
	if len(w.records) != 1 {
		t.Fatalf("%d records", len(w.records))
	}
	// Source, subject and extensions are those of the request.
	want := "traceparent=" + trace + "\nce_n=7\nce_source=/shop\nce_subject=o-1\nce_id=" + eventID +
		"\nce_specversion=1.0\nce_time=2026-01-02T03:04:05Z\nce_type=OrderPaid\ncontent-type=application/avro"
	if got := eventtest.HeaderText(w.records[0].Headers); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
