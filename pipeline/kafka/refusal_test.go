package kafka

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// giver is a copier that gives up records: their values go to "dead".
type giver struct{ copier }

func (h *giver) Refuse(_ context.Context, in *pipeline.Record, why error, out pipeline.Emitter) error {
	if !IsRefusal(why) {
		return fmt.Errorf("given up because of %w", why)
	}
	out.Emit(&pipeline.Record{Topic: "dead", Partition: 0, Key: in.Key, Value: in.Value, Time: in.Time})
	return nil
}

// refuseValues makes the broker refuse each batch of a topic that holds one of the values,
// as Kafka does: nothing of the batch is written.
func refuseValues(t *testing.T, c *cluster, topic string, err *kerr.Error, bad func(value string) bool) (hits *atomic.Int32) {
	t.Helper()
	hits = new(atomic.Int32)
	id := c.TopicInfo(topic).TopicID
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req := r.(*kmsg.ProduceRequest)
		found := false
		for _, rt := range req.Topics {
			for _, rp := range rt.Partitions {
				found = found || rt.TopicID == id && slices.ContainsFunc(valuesOf(t, rp.Records), bad)
			}
		}
		if !found {
			return nil, nil, false
		}
		hits.Add(1)
		resp := req.ResponseKind().(*kmsg.ProduceResponse)
		for _, rt := range req.Topics {
			st := kmsg.NewProduceResponseTopic()
			st.Topic, st.TopicID = rt.Topic, rt.TopicID
			for _, rp := range rt.Partitions {
				sp := kmsg.NewProduceResponseTopicPartition()
				sp.Partition, sp.ErrorCode = rp.Partition, err.Code
				st.Partitions = append(st.Partitions, sp)
			}
			resp.Topics = append(resp.Topics, st)
		}
		return resp, nil, true
	})
	return hits
}

// valuesOf returns the values of the records in a batch.
func valuesOf(t *testing.T, batch []byte) (values []string) {
	t.Helper()
	var b kmsg.RecordBatch
	if err := b.ReadFrom(batch); err != nil {
		t.Error(err)
		return nil
	}
	raw, err := kgo.DefaultDecompressor().Decompress(b.Records, kgo.CompressionCodecType(b.Attributes&7))
	if err != nil {
		t.Error(err)
		return nil
	}
	for range b.NumRecords {
		r := kmsg.NewRecord()
		if err := r.ReadFrom(raw); err != nil {
			t.Error(err)
			return values
		}
		values = append(values, string(r.Value))
		_, n := kmsgVarint(raw)
		raw = raw[n+int(r.Length):]
	}
	return values
}

// kmsgVarint reads a zigzag number and returns the length of its encoding.
func kmsgVarint(b []byte) (v, n int) {
	var u uint64
	for shift := 0; ; shift += 7 {
		u |= uint64(b[n]&0x7f) << shift
		n++
		if b[n-1] < 0x80 {
			return int(u>>1) ^ -int(u&1), n
		}
	}
}

// The records whose output the broker refuses are given up, each once and no other, and
// all others are written once. So it is for each kind of refusal, and for each guarantee.
func TestARefusedRecordIsGivenUpAndTheOthersAreWritten(t *testing.T) {
	bad := func(value string) bool {
		return slices.Contains([]string{"000003", "000700", "000701", "001999"}, value)
	}
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		for _, refusal := range []*kerr.Error{kerr.InvalidTimestamp, kerr.InvalidRecord, kerr.MessageTooLarge, kerr.RecordListTooLarge} {
			t.Run(string(guarantee)+", "+refusal.Message, func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 3, kfake.SeedTopics(1, "dead"))
				hits := refuseValues(t, c, "out", refusal, bad)
				inject(t, c, 0, 2000)
				cfg := testConfig(c, &giver{})
				cfg.Guarantee = guarantee
				l, stop := start(t, cfg)
				waitFor(t, func() bool { return caughtUp(c) && lag(l) == 0 })
				if err := stop(); err != nil {
					t.Error(err)
				}
				out, dead := committed(t, c, "out", 1996), committed(t, c, "dead", 4)
				if guarantee == AtLeastOnce { // an aborted batch may have been written in part
					slices.Sort(out)
					out, dead = slices.Compact(out), slices.Compact(dead)
				}
				slices.Sort(dead)
				if want := []string{"000003", "000700", "000701", "001999"}; !slices.Equal(dead, want) {
					t.Errorf("given up: %v, want %v", dead, want)
				}
				wantEach(t, append(out, dead...), 2000)
				if n := hits.Load(); n < 8 || n > 100 {
					t.Errorf("the broker refused %d batches; each bad record is refused twice alone, and a few times with others", n)
				}
			})
		}
	}
}

// A refusal that ends by itself gives nothing up, also if the batch has one record.
func TestARefusalThatEndsGivesNoRecordUp(t *testing.T) {
	c := newCluster(t, 1, kfake.SeedTopics(1, "dead"))
	refused := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.InvalidRecord, Count: 1})
	inject(t, c, 0, 1)
	_, stop := start(t, testConfig(c, &giver{}))
	wantEach(t, committed(t, c, "out", 1), 1)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if refused.Hits() != 1 {
		t.Errorf("%d batches were refused", refused.Hits())
	}
}

// The broker may have written the batch that it answered with an error. The transaction
// is aborted, so its output is seen once.
func TestARefusedBatchThatWasWrittenIsRolledBack(t *testing.T) {
	c := newCluster(t, 1, kfake.SeedTopics(1, "dead"))
	var passing atomic.Bool
	side := c.client(t)
	id := c.TopicInfo("out").TopicID
	hits := 0
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req := r.(*kmsg.ProduceRequest)
		if passing.Load() || req.Topics[0].TopicID != id || hits == 2 {
			return nil, nil, false
		}
		hits++
		passing.Store(true)
		c.SleepControl(func() {
			defer passing.Store(false)
			again := *req
			if resp, err := again.RequestWith(context.Background(), side); err != nil || resp.Topics[0].Partitions[0].ErrorCode != 0 {
				t.Errorf("the batch was not written: %v, %+v", err, resp)
			}
		})
		resp := req.ResponseKind().(*kmsg.ProduceResponse)
		st, sp := kmsg.NewProduceResponseTopic(), kmsg.NewProduceResponseTopicPartition()
		st.TopicID, sp.ErrorCode = id, kerr.InvalidTimestamp.Code
		st.Partitions = append(st.Partitions, sp)
		resp.Topics = append(resp.Topics, st)
		return resp, nil, true
	})
	inject(t, c, 0, 100)
	l, stop := start(t, testConfig(c, &giver{}))
	waitFor(t, func() bool { return caughtUp(c) && lag(l) == 0 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	wantEach(t, committed(t, c, "out", 100), 100)
	if hits != 2 {
		t.Errorf("%d batches were refused", hits)
	}
}

// A handler that cannot give up records waits, and the error names the remedy.
func TestARefusedBatchOfAHandlerThatGivesNothingUpNamesTheRemedy(t *testing.T) {
	c := newCluster(t, 1)
	refused := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.InvalidTimestamp, Count: -1})
	inject(t, c, 0, 100)
	l, _ := start(t, testConfig(c, &copier{}))
	waitFor(t, func() bool {
		err := l.Ready()
		return err != nil && strings.Contains(err.Error(), "writing to out: one of several records was refused: INVALID_TIMESTAMP") && strings.Contains(err.Error(), "raise the topic's message.timestamp.after.max.ms")
	})
	refused.Remove()
	wantEach(t, committed(t, c, "out", 100), 100)
	waitFor(t, func() bool { return l.Ready() == nil })
}

// After a change of a topic's configuration the handler gets the new limits, and nothing
// is given up.
func TestARefusalAfterAChangeOfTheTopicGivesTheHandlerItsLimits(t *testing.T) {
	c := newCluster(t, 1, kfake.SeedTopics(1, "dead"))
	l := &limitedGiver{}
	cfg := testConfig(c, l)
	cfg.Writes = []string{"out"}
	loop, stop := start(t, cfg)
	inject(t, c, 0, 100)
	wantEach(t, committed(t, c, "out", 100), 100)
	setLimit(t, c, "out", 30_000)
	refused := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.RecordListTooLarge, Count: 1})
	inject(t, c, 100, 200)
	waitFor(t, func() bool { return caughtUp(c) && lag(loop) == 0 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	wantEach(t, committed(t, c, "out", 200), 200)
	if n := l.limits.MaxRecord("out"); n != 30_000-batchHead || refused.Hits() != 1 {
		t.Errorf("the handler's limit is %d bytes after %d refusals", n, refused.Hits())
	}
}

// limitedGiver keeps its limits.
type limitedGiver struct {
	giver
	limits Limits // owned by the session
}

func (h *limitedGiver) SetLimits(l Limits) { h.limits = l }

// A Writer fails only the records that are refused alone, and keeps the order of each key.
func TestAWriterFailsOnlyTheRefusedRecords(t *testing.T) {
	for _, refusal := range []*kerr.Error{kerr.InvalidTimestamp, kerr.InvalidRecord, kerr.RecordListTooLarge} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			bad := func(value string) bool { return strings.HasSuffix(value, "77") }
			hits := refuseValues(t, c, "in", refusal, bad)
			w, err := NewWriter(c.config())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			const n = 500
			results := make([]error, n)
			records := make([]pipeline.Record, n)
			for i := range n {
				records[i] = pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: fmt.Append(nil, i%3), Value: fmt.Appendf(nil, "%06d", i)}
				w.Write(t.Context(), &records[i], func(err error) { results[i] = err })
			}
			if err := w.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := 0
			for i, err := range results {
				if wrong := bad(string(records[i].Value)); IsRefusal(err) != wrong || !wrong && err != nil {
					t.Errorf("record %d: %v", i, err)
				} else if !wrong {
					want++
				}
			}
			last := map[string]string{}
			total := 0
			for p := range int32(2) {
				if _, err := ReadPartition(t.Context(), c.config(), "in", p, 0, func(r *pipeline.Record) error {
					key, value := string(r.Key), string(r.Value)
					if value <= last[key] {
						t.Errorf("key %s: %s comes after %s", key, value, last[key])
					}
					last[key] = value
					total++
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			if total != want || hits.Load() < 5 {
				t.Errorf("%d records are written, want %d; %d requests were refused", total, want, hits.Load())
			}
		})
	}
}
