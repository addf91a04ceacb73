package kafka

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// sayer is a copier that also writes what it is told to, as long as it takes.
type sayer struct {
	copier
	flushing func() // called before it flushes

	mu      sync.Mutex // guards what follows
	wake    func()
	due     []string
	emitted int // of those
}

func (h *sayer) OnWake(wake func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wake = wake
	if len(h.due) > 0 {
		wake()
	}
}

func (h *sayer) say(values ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.due = append(h.due, values...)
	if h.wake != nil {
		h.wake()
	}
}

func (h *sayer) Flush(_ context.Context, out pipeline.Emitter) error {
	if h.flushing != nil {
		h.flushing()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, value := range h.due {
		out.Emit(&pipeline.Record{Topic: "out", Partition: pipeline.KeyPartition, Key: []byte(value), Value: []byte(value), Time: time.UnixMilli(1)})
	}
	h.emitted = len(h.due)
	return nil
}

func (h *sayer) EndBatch(committed bool) {
	h.copier.EndBatch(committed)
	h.mu.Lock()
	defer h.mu.Unlock()
	if committed {
		h.due = slices.Delete(h.due, 0, h.emitted)
	}
	if h.emitted = 0; len(h.due) > 0 {
		h.wake()
	}
}

func TestAHandlerIsFlushedWithoutARecord(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(string(guarantee), func(t *testing.T) {
			c := newCluster(t, 2)
			h := &sayer{}
			cfg := testConfig(c, h)
			cfg.Guarantee = guarantee
			l, stop := start(t, cfg)
			said := 0
			say := func() {
				h.say(fmt.Sprintf("%06d", said))
				said++
			}
			for range 5 { // while it joins the group, and when it waits for records
				say()
				wantEach(t, committed(t, c, "out", said), said)
			}
			if at := groupOffset(c, "in", 0); at > 0 {
				t.Errorf("the group is at offset %d of a topic without records", at)
			}
			// While records come.
			inject(t, c, said, said+100)
			for said += 100; said < 200; {
				say()
			}
			wantEach(t, committed(t, c, "out", said), said)
			waitFor(t, func() bool { return len(l.Progress()) == 2 && lag(l) == 0 })
			at := []int64{groupOffset(c, "in", 0), groupOffset(c, "in", 1)}
			say()
			wantEach(t, committed(t, c, "out", said), said)
			if after := []int64{groupOffset(c, "in", 0), groupOffset(c, "in", 1)}; !slices.Equal(at, after) {
				t.Errorf("a batch without records moved the group from %v to %v", at, after)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A batch without records is lost by none of the faults, and where the client can
// tell how it ended, it is there once.
func TestFaultsInABatchWithoutRecords(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault brokerFault
		twice bool // it may have been applied, and nobody can tell
	}{
		{"Produce refused", refuse(kmsg.Produce, kerr.NotEnoughReplicas), false},
		{"Produce refused for good", refuse(kmsg.Produce, kerr.MessageTooLarge), false},
		{"Produce applied, answered with a timeout", refuse(kmsg.Produce, kerr.RequestTimedOut), false},
		{"TxnOffsetCommit refused, illegal generation", refuse(kmsg.TxnOffsetCommit, kerr.IllegalGeneration), false},
		{"TxnOffsetCommit refused, unknown member", refuse(kmsg.TxnOffsetCommit, kerr.UnknownMemberID), false},
		{"EndTxn refused, abortable", refuse(kmsg.EndTxn, kerr.TransactionAbortable), false},
		{"EndTxn not applied, connection lost", endTxn(false, hangUp), false},
		{"EndTxn applied, unknown server error", endTxn(true, unknownServerError), true},
		{"EndTxn applied, connection lost", endTxn(true, hangUp), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			h := &sayer{}
			cfg := testConfig(c, h)
			cfg.TransactionTimeout = time.Second
			cfg.SessionTimeout = time.Second
			l, stop := start(t, cfg)
			waitFor(t, func() bool { return len(l.Progress()) == 2 })
			hits := tt.fault(t, c)
			for said := range 5 {
				h.say(fmt.Sprintf("%06d", said))
				waitFor(t, func() bool {
					h.mu.Lock()
					defer h.mu.Unlock()
					return len(h.due) == 0
				})
				got := readAll(t.Context(), t, c, "out")
				if tt.twice {
					if len(got) > said+1+hits() {
						t.Errorf("%v, after %d faults", got, hits())
					}
					slices.Sort(got)
					got = slices.Compact(got)
				}
				wantEach(t, got, said+1)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			if hits() == 0 {
				t.Error("the fault was never seen")
			}
		})
	}
}

// A session that lost its partitions in the meantime commits nothing: the group has
// to vouch for each transaction, by offsets, also if there are no new ones.
func TestTheGroupVouchesForABatchWithoutRecords(t *testing.T) {
	c := newCluster(t, 2)
	inject(t, c, 0, 100)
	h := &sayer{}
	l, _ := start(t, testConfig(c, h))
	waitFor(t, func() bool { return len(l.Progress()) == 2 && lag(l) == 0 })
	want := map[int32]int64{0: groupOffset(c, "in", 0), 1: groupOffset(c, "in", 1)}
	var seen atomic.Pointer[kmsg.TxnOffsetCommitRequest]
	c.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		seen.Store(req.(*kmsg.TxnOffsetCommitRequest))
		return nil, nil, false
	})
	h.say("000100")
	wantEach(t, committed(t, c, "out", 101), 101)
	req := seen.Load()
	if req == nil {
		t.Fatal("no offsets were committed")
	}
	got := map[int32]int64{}
	for _, topic := range req.Topics {
		for _, p := range topic.Partitions {
			got[p.Partition] = p.Offset
		}
	}
	if req.MemberID == "" || req.Generation < 1 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("member %q of generation %d committed %v, want %v", req.MemberID, req.Generation, got, want)
	}
}

func TestARebalanceInABatchWithoutRecordsAbortsIt(t *testing.T) {
	c := newCluster(t, 4)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var aborted atomic.Int32
	h := &sayer{flushing: func() { once.Do(func() { close(entered); <-release }) }}
	h.ended = func(committed bool) {
		if !committed {
			aborted.Add(1)
		}
	}
	first := testConfig(c, h)
	first.SessionTimeout = time.Second
	l, _ := start(t, first)
	waitFor(t, func() bool { return len(l.Progress()) == 4 })
	h.say("000000")
	<-entered
	second := testConfig(c, &copier{})
	second.Instance = "1"
	start(t, second)
	waitFor(t, func() bool { return len(l.Progress()) == 2 }) // two are taken away
	close(release)
	wantEach(t, committed(t, c, "out", 1), 1)
	if aborted.Load() == 0 {
		t.Error("the batch was not aborted")
	}
}

// A stop ends a loop also while it is being woken all the time.
func TestALoopThatIsWokenStops(t *testing.T) {
	c := newCluster(t, 1)
	h := &sayer{}
	h.ended = func(bool) { h.wake() }
	_, stop := start(t, testConfig(c, h))
	h.say("000000")
	wantEach(t, committed(t, c, "out", 1), 1)
	if err := stop(); err != nil {
		t.Error(err)
	}
}
