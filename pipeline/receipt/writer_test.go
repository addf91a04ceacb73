package receipt_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/receipt"
)

// receiptsOf returns the receipts on a topic as JSON, by event id, without the position
// of the event.
func receiptsOf(b *processortest.Bench, topic string) map[string][]string {
	b.Helper()
	got := map[string][]string{}
	b.Read(topic, func(r *pipeline.Record) {
		var one receipt.Receipt
		if err := json.Unmarshal(r.Value, &one); err != nil {
			b.Errorf("%s: %v", r.Value, err)
		}
		if one.Topic != "in" {
			b.Errorf("the receipt of %s has the topic %s", r.Key, one.Topic)
		}
		one.Topic, one.Partition, one.Offset = "", 0, 0
		value, err := json.Marshal(one)
		if err != nil {
			b.Fatal(err)
		}
		got[string(r.Key)] = append(got[string(r.Key)], string(value))
	})
	return got
}

// Every event that is not in the output has exactly one receipt, and other events have
// none, also after aborted batches.
func TestReceiptsAreWrittenOnceForEventsWithoutOutput(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault *kfake.Fault
	}{
		{"no fault", nil},
		{"Produce refused", &kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "receipts", Err: kerr.MessageTooLarge, Count: 2}},
		{"Produce of the output refused", &kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.MessageTooLarge, Count: 2}},
		{"Produce applied, answered with a timeout", &kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "receipts", Err: kerr.RequestTimedOut, Count: 2}},
		{"EndTxn refused", &kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError, Count: 2}},
		{"EndTxn applied, answered with a timeout", &kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.RequestTimedOut, Count: 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := processortest.NewBench(t, processortest.ReceiptsTopology)
			hits := func() int { return 1 }
			if test.fault != nil {
				hits = b.Broker.Fault(*test.fault).Hits
			}
			page, err := codec.ParseSchema(string(harness.ClickSchemas["Page.avsc"].Data))
			if err != nil {
				t.Fatal(err)
			}
			pageID, err := b.Registry.Register(t.Context(), codec.TopicRecordName.Value("in", page), page)
			if err != nil {
				t.Fatal(err)
			}
			stop := b.Start("0")
			at := time.UnixMilli(1_800_000_000_000)
			want := map[string][]string{}
			const n = 400
			b.Write(n, func(i int) *pipeline.Record {
				id := fmt.Sprint("e-", i)
				switch {
				case i%2 != 0:
					want[id] = []string{`{"outcome":"filtered","pipeline":"p","stage":"even","topic":"","partition":0,"offset":0}`}
				case i == 14:
					want[id] = []string{`{"outcome":"dead_letter","pipeline":"p","stage":"lucky","reason":"assert","topic":"","partition":0,"offset":0}`}
				case i%40 == 2: // a duplicate
					id = fmt.Sprint("e-", i-2)
					want[id] = []string{`{"outcome":"filtered","pipeline":"p","stage":"dedupe","duplicate":true,"topic":"","partition":0,"offset":0}`}
				}
				return b.Click(id, int64(i), at)
			})
			decodeFails := func(id, reason string) {
				want[id] = []string{fmt.Sprintf(`{"outcome":"dead_letter","pipeline":"p","stage":"decode","reason":%q,"topic":"","partition":0,"offset":0}`, reason)}
			}
			bad := []*pipeline.Record{b.Click("cut off", 2, at), b.Click("too long", 2, at), b.Click("", 1, at), b.Click("x", 2, at), b.Click("other type", 2, at)}
			decodeFails("cut off", "bad_body")
			bad[0].Value = bad[0].Value[:len(bad[0].Value)-1]
			decodeFails("too long", "trailing_bytes")
			bad[1].Value = append(bad[1].Value, 0)
			bad[3].Value = []byte("no event at all") // its id is unknown
			decodeFails("other type", "unknown_type")
			bad[4].Value = append(codec.AppendString(codec.AppendString(codec.AppendFrame(nil, pageID), "other type"), "title"), 0)
			b.Write(len(bad), func(i int) *pipeline.Record { return bad[i] })
			b.CaughtUp()
			stop()

			got := receiptsOf(b, "receipts")
			for id, receipts := range want {
				if fmt.Sprint(got[id]) != fmt.Sprint(receipts) {
					t.Errorf("%q has the receipts %v, want %v", id, got[id], receipts)
				}
				delete(got, id)
			}
			if len(got) > 0 {
				t.Errorf("receipts of events in the output: %v", got)
			}
			if out := b.Firsts(); len(out) != n/2-1-n/40 {
				t.Errorf("the output has %d events", len(out))
			}
			if hits() == 0 {
				t.Error("the fault did not occur")
			}
		})
	}
}
