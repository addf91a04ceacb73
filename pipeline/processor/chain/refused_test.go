package chain_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/processortest"
)

// choosyTopology has topics that take only some records: in takes any, out and dead take
// times up to an hour ahead, and out takes no record without a key.
const choosyTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, config: {message.timestamp.after.max.ms: "9223372036854775807"}}
  out: {partitions: 2, config: {message.timestamp.after.max.ms: "3600000", cleanup.policy: compact}}
  dead: {partitions: 1, config: {message.timestamp.after.max.ms: "3600000"}}
pipelines: {p: {from: in, to: out, dead_letter: dead}}
`

// letterOf is a dead letter and its record.
type letterOf struct {
	deadletter.Letter
	record pipeline.Record
}

// lettersOf returns the dead letters by the source offset and partition of their events.
func lettersOf(b *processortest.Bench) map[string]letterOf {
	b.Helper()
	letters := map[string]letterOf{}
	b.Read("dead", func(r *pipeline.Record) {
		kept := pipeline.Record{Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value), Time: r.Time}
		for _, h := range r.Headers {
			kept.Headers = append(kept.Headers, pipeline.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
		}
		l := deadletter.Parse(&kept)
		at := fmt.Sprintf("%d/%d", l.SourcePartition, l.SourceOffset)
		if _, twice := letters[at]; twice {
			b.Errorf("the event %s has two letters", at)
		}
		letters[at] = letterOf{l, kept}
	})
	return letters
}

// An event whose output the topic does not accept becomes a dead letter with a time that
// its topic accepts; the other events pass. So it is if the end of the transaction fails.
func TestEventThatItsTopicDoesNotAcceptBecomesADeadLetter(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault *kfake.Fault
	}{
		{"no fault", nil},
		{"EndTxn refused", &kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError, Count: 2}},
		{"EndTxn applied, answered with a timeout", &kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.RequestTimedOut, Count: 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := processortest.NewBench(t, choosyTopology)
			began := time.Now()
			b.Start("0")
			if test.fault != nil {
				b.Broker.Fault(*test.fault)
			}
			future := began.Add(48 * time.Hour).Truncate(time.Millisecond)
			b.Write(100, func(i int) *pipeline.Record {
				r := b.Click(fmt.Sprint(i), int64(i), began)
				r.Partition = int32(i % 2)
				switch i {
				case 41:
					r.Time = future
				case 62:
					r.Key = nil
				case 83:
					r.Time, r.Key = future, nil
				}
				return r
			})
			b.CaughtUp()
			if got := b.Firsts(); len(got) != 97 {
				t.Errorf("%d events are on the output, want 97", len(got))
			}
			letters := lettersOf(b)
			if len(letters) != 3 {
				t.Fatalf("%d dead letters, want 3: %v", len(letters), letters)
			}
			late := letters["1/20"] // event 41
			if late.Reason != "bad_time" || late.Stage != deadletter.StageEncode || !strings.Contains(late.Error, "out takes at most 1h0m0s ahead of the clock (message.timestamp.after.max.ms)") {
				t.Errorf("the letter of the event of the day after tomorrow says %s, %s: %s", late.Stage, late.Reason, late.Error)
			}
			if at := late.record.Time; at.Before(began.Add(-time.Second)) || at.After(time.Now()) || !late.RecordTime.Equal(future) {
				t.Errorf("the letter has the time %v, and keeps %v", at, late.RecordTime)
			}
			if back := deadletter.Original(&late.record); !back.Time.Equal(future) {
				t.Errorf("redriven, the event has the time %v, want %v", back.Time, future)
			}
			unkeyed := letters["0/31"] // event 62
			if unkeyed.Reason != "no_key" || !strings.Contains(unkeyed.Error, "out is compacted") {
				t.Errorf("the letter of the event without a key says %s: %s", unkeyed.Reason, unkeyed.Error)
			}
			if !unkeyed.RecordTime.IsZero() || unkeyed.record.Time.UnixMilli() != began.UnixMilli() {
				t.Errorf("the letter of the event without a key has the time %v, not the event's", unkeyed.record.Time)
			}
		})
	}
}

// The broker refuses the output of an event by a rule that only it knows.
func TestEventThatTheBrokerRefusesBecomesADeadLetter(t *testing.T) {
	b := processortest.NewBench(t, choosyTopology)
	b.Start("0")
	name := harness.Noise(300) // its bytes stay the same in a compressed batch
	bad := b.Click(name, 30, time.Time{}).Value
	refused := b.Broker.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.InvalidRecord, Count: -1, When: func(req kmsg.Request) bool {
		for _, rt := range req.(*kmsg.ProduceRequest).Topics {
			for _, rp := range rt.Partitions {
				if bytes.Contains(rp.Records, []byte(name[100:140])) {
					return true
				}
			}
		}
		return false
	}})
	b.Write(60, func(i int) *pipeline.Record {
		if i == 30 {
			return b.Click(name, 30, time.Now())
		}
		return b.Click(fmt.Sprint(i), int64(i), time.Now())
	})
	b.CaughtUp()
	got := b.Firsts()
	if _, there := got[name]; there || len(got) != 59 {
		t.Errorf("%d events are on the output, want 59 without the refused one", len(got))
	}
	letters := lettersOf(b)
	if len(letters) != 1 {
		t.Fatalf("%d dead letters, want 1", len(letters))
	}
	for _, l := range letters {
		if l.Reason != "refused" || !strings.Contains(l.Error, "INVALID_RECORD") || !bytes.Equal(l.record.Value, bad) {
			t.Errorf("the letter says %s: %s", l.Reason, l.Error)
		}
	}
	if refused.Hits() < 2 {
		t.Errorf("the broker refused %d batches", refused.Hits())
	}
}
