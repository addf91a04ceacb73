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

// waker is a copier that also emits the values passed to queue, until a batch with them
// commits.
type waker struct {
	copier
	flushing func() // called at the start of Flush

	mu      sync.Mutex // guards the fields below
	wake    func()
	due     []string // values that are not committed yet
	emitted int      // how many of due the current batch has emitted
}

func (h *waker) OnWake(wake func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wake = wake
	if len(h.due) > 0 {
		wake()
	}
}

func (h *waker) queue(values ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.due = append(h.due, values...)
	if h.wake != nil {
		h.wake()
	}
}

func (h *waker) Flush(_ context.Context, out pipeline.Emitter) error {
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

func (h *waker) EndBatch(committed bool) {
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
			h := &waker{}
			cfg := testConfig(c, h)
			cfg.Guarantee = guarantee
			l, stop := start(t, cfg)
			queued := 0
			queueNext := func() {
				h.queue(fmt.Sprintf("%06d", queued))
				queued++
			}
			for range 5 { // the first while it joins the group, the others while it waits for records
				queueNext()
				wantEach(t, committed(t, c, "out", queued), queued)
			}
			if at := groupOffset(c, "in", 0); at > 0 {
				t.Errorf("the group is at offset %d of a topic without records", at)
			}
			// While records come.
			inject(t, c, queued, queued+100)
			for queued += 100; queued < 200; {
				queueNext()
			}
			wantEach(t, committed(t, c, "out", queued), queued)
			waitFor(t, func() bool { return len(l.Progress()) == 2 && lag(l) == 0 })
			at := []int64{groupOffset(c, "in", 0), groupOffset(c, "in", 1)}
			queueNext()
			wantEach(t, committed(t, c, "out", queued), queued)
			if after := []int64{groupOffset(c, "in", 0), groupOffset(c, "in", 1)}; !slices.Equal(at, after) {
				t.Errorf("a batch without records moved the group from %v to %v", at, after)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// No fault loses a batch without records. If the client can tell whether it committed, it
// is written once.
func TestFaultsInABatchWithoutRecords(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault brokerFault
		twice bool // the commit may have been applied without the client knowing
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
			h := &waker{}
			cfg := testConfig(c, h)
			cfg.TransactionTimeout = time.Second
			cfg.SessionTimeout = time.Second
			l, stop := start(t, cfg)
			waitFor(t, func() bool { return len(l.Progress()) == 2 })
			hits := tt.fault(t, c)
			for queued := range 5 {
				h.queue(fmt.Sprintf("%06d", queued))
				waitFor(t, func() bool {
					h.mu.Lock()
					defer h.mu.Unlock()
					return len(h.due) == 0
				})
				got := readAll(t.Context(), t, c, "out")
				if tt.twice {
					if len(got) > queued+1+hits() {
						t.Errorf("%v, after %d faults", got, hits())
					}
					slices.Sort(got)
					got = slices.Compact(got)
				}
				wantEach(t, got, queued+1)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			if hits() == 0 {
				t.Error("the fault was never injected")
			}
		})
	}
}

// Every transaction commits offsets, even if none is new: only then does the group check
// that the session still has its partitions.
func TestABatchWithoutRecordsCommitsOffsets(t *testing.T) {
	c := newCluster(t, 2)
	inject(t, c, 0, 100)
	h := &waker{}
	l, _ := start(t, testConfig(c, h))
	waitFor(t, func() bool { return len(l.Progress()) == 2 && lag(l) == 0 })
	want := map[int32]int64{0: groupOffset(c, "in", 0), 1: groupOffset(c, "in", 1)}
	var seen atomic.Pointer[kmsg.TxnOffsetCommitRequest]
	c.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		seen.Store(req.(*kmsg.TxnOffsetCommitRequest))
		return nil, nil, false
	})
	h.queue("000100")
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
	h := &waker{flushing: func() { once.Do(func() { close(entered); <-release }) }}
	h.ended = func(committed bool) {
		if !committed {
			aborted.Add(1)
		}
	}
	first := testConfig(c, h)
	first.SessionTimeout = time.Second
	l, _ := start(t, first)
	waitFor(t, func() bool { return len(l.Progress()) == 4 })
	h.queue("000000")
	<-entered
	second := testConfig(c, &copier{})
	second.Instance = "1"
	start(t, second)
	waitFor(t, func() bool { return len(l.Progress()) == 2 }) // two are revoked
	close(release)
	wantEach(t, committed(t, c, "out", 1), 1)
	if aborted.Load() == 0 {
		t.Error("the batch was not aborted")
	}
}

func TestALoopThatIsWokenAllTheTimeStops(t *testing.T) {
	c := newCluster(t, 1)
	h := &waker{}
	h.ended = func(bool) { h.wake() }
	_, stop := start(t, testConfig(c, h))
	h.queue("000000")
	wantEach(t, committed(t, c, "out", 1), 1)
	if err := stop(); err != nil {
		t.Error(err)
	}
}
