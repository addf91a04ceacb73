package kafka

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// A brokerFault makes a broker fail a few times. hits returns how many times it did.
type brokerFault func(t *testing.T, c *cluster) (hits func() int)

// refuse answers the first requests with an error instead of executing them. With
// REQUEST_TIMED_OUT and NOT_ENOUGH_REPLICAS_AFTER_APPEND, the broker executes them
// nevertheless, and the client cannot know.
func refuse(key kmsg.Key, err *kerr.Error) brokerFault {
	return func(_ *testing.T, c *cluster) func() int {
		f := kfake.Fault{Keys: []kmsg.Key{key}, Err: err, Count: 3}
		if key == kmsg.Produce {
			f.Topic = "out"
		} else {
			f.TxnID = "g-0-0"
		}
		return c.Fault(f).Hits
	}
}

// An answer is the response to an EndTxn request that the client receives.
type answer uint8

const (
	none   answer = iota // no response; the connection stays open
	hangUp               // the connection is closed
	unknownServerError
)

// endTxn replaces the response to the first commits. applied means that the broker
// still executes them; what is the response that the client receives.
func endTxn(applied bool, what answer) brokerFault {
	return func(t *testing.T, c *cluster) func() int {
		var hits atomic.Int32
		var passing atomic.Bool // the current request is the one that the test sends to apply the commit
		side, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...))
		if err != nil {
			t.Fatal(err)
		}
		most := int32(3)
		if what == none {
			most = 1 // each lasts until the client times out
		}
		over := make(chan struct{})
		t.Cleanup(func() { close(over); side.Close() })
		c.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.KeepControl()
			end := req.(*kmsg.EndTxnRequest)
			if !end.Commit || passing.Load() || hits.Load() == most {
				return nil, nil, false
			}
			hits.Add(1)
			if applied {
				passing.Store(true)
				c.SleepControl(func() {
					defer passing.Store(false)
					again := *end
					resp, err := again.RequestWith(context.Background(), side)
					if err != nil || resp.ErrorCode != 0 {
						t.Errorf("the commit did not apply: %v, %+v", err, resp)
					}
				})
			}
			switch what {
			case hangUp:
				return nil, errors.New("hang up"), true
			case unknownServerError:
				resp := end.ResponseKind().(*kmsg.EndTxnResponse)
				resp.ErrorCode = kerr.UnknownServerError.Code
				return resp, nil, true
			default:
				c.SleepControl(func() { <-over })
				return nil, errors.New("hang up"), true
			}
		})
		return func() int { return int(hits.Load()) }
	}
}

// TestFaultsOfTheBroker injects each fault in two forms where possible: the request is
// refused, or it is applied although the client gets an error. Afterwards the output must
// equal the input, each record once, and the group's offsets must be at the end.
func TestFaultsOfTheBroker(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault brokerFault
	}{
		{"Produce refused, not enough replicas", refuse(kmsg.Produce, kerr.NotEnoughReplicas)},
		{"Produce refused, not the leader", refuse(kmsg.Produce, kerr.NotLeaderForPartition)},
		{"Produce applied, answered with a timeout", refuse(kmsg.Produce, kerr.RequestTimedOut)},
		{"Produce applied, not enough replicas after append", refuse(kmsg.Produce, kerr.NotEnoughReplicasAfterAppend)},

		{"TxnOffsetCommit refused, illegal generation", refuse(kmsg.TxnOffsetCommit, kerr.IllegalGeneration)},
		{"TxnOffsetCommit refused, unknown member", refuse(kmsg.TxnOffsetCommit, kerr.UnknownMemberID)},
		{"TxnOffsetCommit refused, coordinator moved", refuse(kmsg.TxnOffsetCommit, kerr.NotCoordinator)},
		{"TxnOffsetCommit refused, coordinator loading", refuse(kmsg.TxnOffsetCommit, kerr.CoordinatorLoadInProgress)},

		{"EndTxn refused, coordinator loading", refuse(kmsg.EndTxn, kerr.CoordinatorLoadInProgress)},
		{"EndTxn refused, unknown server error", refuse(kmsg.EndTxn, kerr.UnknownServerError)},
		{"EndTxn refused, abortable", refuse(kmsg.EndTxn, kerr.TransactionAbortable)},
		{"EndTxn not applied, connection lost", endTxn(false, hangUp)},
		{"EndTxn not applied, no answer", endTxn(false, none)},
		{"EndTxn applied, answered with a timeout", refuse(kmsg.EndTxn, kerr.RequestTimedOut)},
		{"EndTxn applied, unknown server error", endTxn(true, unknownServerError)},
		{"EndTxn applied, connection lost", endTxn(true, hangUp)},
		{"EndTxn applied, no answer", endTxn(true, none)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			hits := tt.fault(t, c)
			inject(t, c, 0, 2000)
			cfg := testConfig(c, &copier{})
			cfg.TransactionTimeout = time.Second // also the timeout for an answer to EndTxn
			cfg.SessionTimeout = time.Second     // a member may fail to leave the group
			l, stop := start(t, cfg)
			wantEach(t, committed(t, c, "out", 2000), 2000)
			waitFor(t, func() bool { return lag(l) == 0 })
			if err := stop(); err != nil {
				t.Error(err)
			}
			wantEach(t, committed(t, c, "out", 2000), 2000)
			wantAllCommitted(t, c)
			if hits() == 0 {
				t.Error("the fault was never injected")
			}
		})
	}
}

// wantAllCommitted checks that the group's offsets are at the ends of "in".
func wantAllCommitted(t *testing.T, c *cluster) {
	t.Helper()
	for _, p := range c.PartitionInfos("in") {
		if at := groupOffset(c, "in", p.Partition); at != p.LastStableOffset && p.LastStableOffset > 0 {
			t.Errorf("the group's offset of partition %d is %d, want %d", p.Partition, at, p.LastStableOffset)
		}
	}
}

func TestARebalanceDuringABatchAbortsIt(t *testing.T) {
	c := newCluster(t, 4)
	inject(t, c, 0, 1000)
	entered, release := make(chan struct{}), make(chan struct{})
	var held, aborted atomic.Bool
	h := &copier{
		before: func(context.Context, *pipeline.Record, pipeline.Emitter) error {
			if !held.Swap(true) {
				close(entered)
				<-release
			}
			return nil
		},
		ended: func(committed bool) {
			if !committed {
				aborted.Store(true)
			}
		},
	}
	first := testConfig(c, h)
	first.CommitInterval, first.SessionTimeout = 100*time.Millisecond, time.Second
	l, _ := start(t, first)
	<-entered
	waitFor(t, func() bool { return len(l.Progress()) == 4 })
	second := testConfig(c, &copier{})
	second.Instance = "1"
	start(t, second)
	waitFor(t, func() bool { return len(l.Progress()) == 2 }) // two are revoked
	close(release)
	wantEach(t, committed(t, c, "out", 1000), 1000)
	waitFor(t, aborted.Load)
	waitFor(t, func() bool { return allCommitted(c) })
	wantEach(t, committed(t, c, "out", 1000), 1000)
}

func allCommitted(c *cluster) bool {
	return !slices.ContainsFunc(c.PartitionInfos("in"), func(p *kfake.PartitionInfo) bool {
		return p.LastStableOffset > 0 && groupOffset(c, "in", p.Partition) != p.LastStableOffset
	})
}

func TestAStolenTransactionalIDEndsTheLoop(t *testing.T) {
	c := newCluster(t, 1)
	inject(t, c, 0, 10)
	entered, release := make(chan struct{}), make(chan struct{})
	h := &copier{before: func(_ context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
		if string(in.Value) == "000005" {
			close(entered)
			<-release
		}
		return nil
	}}
	l, err := NewLoop(testConfig(c, h))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context()) }()
	<-entered
	thief, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.TransactionalID("g-0-0"))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	if _, _, err := thief.ProducerID(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(release)
	err = <-done
	if !errors.Is(err, ErrFenced) || pipeline.ClassOf(err) != pipeline.ClassFatal || !strings.Contains(err.Error(), "g-0-0") {
		t.Errorf("ended with %v", err)
	}
	if err := l.Ready(); err == nil || !strings.Contains(err.Error(), "fenced") {
		t.Errorf("ready: %v", err)
	}
	if got := readAll(t.Context(), t, c, "out"); len(got) != 0 {
		t.Errorf("%d records of a fenced batch are visible", len(got))
	}
	if at := groupOffset(c, "in", 0); at > 0 {
		t.Errorf("the group's offset moved to %d", at)
	}
}

// applied executes the first requests of the transaction, but answers with an error.
func applied(key kmsg.Key, err *kerr.Error) brokerFault {
	return func(t *testing.T, c *cluster) func() int {
		var hits atomic.Int32
		var passing atomic.Bool // the current request is the one that the test sends to apply the commit
		side, dialErr := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...))
		if dialErr != nil {
			t.Fatal(dialErr)
		}
		t.Cleanup(side.Close)
		c.ControlKey(int16(key), func(req kmsg.Request) (resp kmsg.Response, _ error, _ bool) {
			c.KeepControl()
			again := req
			switch req := req.(type) {
			case *kmsg.ProduceRequest:
				if req.TransactionID == nil {
					return nil, nil, false
				}
				copied := *req
				again = &copied
			case *kmsg.EndTxnRequest:
				if !req.Commit {
					return nil, nil, false
				}
				copied := *req
				again = &copied
			}
			if passing.Load() || hits.Load() == 3 {
				return nil, nil, false
			}
			hits.Add(1)
			passing.Store(true)
			c.SleepControl(func() {
				defer passing.Store(false)
				var failed error
				if resp, failed = side.Request(context.Background(), again); failed != nil {
					t.Errorf("the request did not apply: %v", failed)
				}
			})
			switch resp := resp.(type) {
			case *kmsg.EndTxnResponse:
				if resp.ErrorCode != 0 {
					t.Errorf("the commit did not apply: %+v", resp)
				}
				resp.ErrorCode = err.Code
			case *kmsg.ProduceResponse:
				for i := range resp.Topics {
					for j := range resp.Topics[i].Partitions {
						if p := &resp.Topics[i].Partitions[j]; p.ErrorCode != 0 {
							t.Errorf("the records were not appended: %+v", p)
						} else {
							p.ErrorCode = err.Code
						}
					}
				}
			}
			return resp, nil, true
		})
		return func() int { return int(hits.Load()) }
	}
}

// A broker error that reports another owner of the transactional id ends the loop: two
// workers under one id would fence each other forever. The batch is either rolled back
// or was committed, and a restarted worker loses and repeats nothing.
func TestAWorkerThatIsFencedLosesAndRepeatsNothing(t *testing.T) {
	for _, err := range []*kerr.Error{kerr.InvalidProducerEpoch, kerr.ProducerFenced} {
		for _, key := range []kmsg.Key{kmsg.Produce, kmsg.EndTxn} {
			for kind, fault := range map[string]brokerFault{"refused": refuse(key, err), "applied": applied(key, err)} {
				t.Run(key.Name()+" "+kind+", "+err.Message, func(t *testing.T) {
					t.Parallel()
					c := newCluster(t, 2)
					hits := fault(t, c)
					inject(t, c, 0, 2000)
					cfg := testConfig(c, &copier{})
					cfg.SessionTimeout = time.Second
					ctx, cancel := context.WithCancel(context.Background())
					stopped := make(chan struct{})
					fenced := 0
					go func() {
						defer close(stopped)
						for ctx.Err() == nil {
							l, err := NewLoop(cfg)
							if err == nil {
								err = l.Run(ctx)
							}
							switch {
							case errors.Is(err, ErrFenced):
								fenced++
							case err != nil:
								t.Errorf("the loop ended with %v", err)
								return
							}
						}
					}()
					stop := func() { cancel(); <-stopped }
					t.Cleanup(stop)
					wantEach(t, committed(t, c, "out", 2000), 2000)
					waitFor(t, func() bool { return allCommitted(c) })
					stop()
					wantEach(t, committed(t, c, "out", 2000), 2000)
					wantAllCommitted(t, c)
					if hits() == 0 || fenced == 0 {
						t.Errorf("the fault was injected %d times and ended the loop %d times", hits(), fenced)
					}
				})
			}
		}
	}
}

// If a rebalance refuses a commit, the batch is rolled back and retried with the same
// client: a client that left would cause another rebalance.
func TestABatchThatTheGroupRefusesKeepsItsClient(t *testing.T) {
	for _, refusal := range []*kerr.Error{kerr.RebalanceInProgress, kerr.IllegalGeneration} {
		t.Run(refusal.Message, func(t *testing.T) {
			var log lines
			var aborted, committed atomic.Int32
			c := newCluster(t, 4)
			inject(t, c, 0, 1000)
			hits := refuse(kmsg.TxnOffsetCommit, refusal)(t, c)
			cfg := testConfig(c, &copier{ended: func(ok bool) {
				if ok {
					committed.Add(1)
				} else {
					aborted.Add(1)
				}
			}})
			cfg.Logger = log.logger()
			l, stop := start(t, cfg)
			waitFor(t, func() bool { return committed.Load() > 0 && lag(l) == 0 })
			if err := stop(); err != nil {
				t.Error(err)
			}
			wantEach(t, readAll(t.Context(), t, c, "out"), 1000)
			if hits() == 0 || aborted.Load() == 0 {
				t.Errorf("%d refusals, %d batches rolled back", hits(), aborted.Load())
			}
			if strings.Contains(log.String(), "starting a new client") {
				t.Errorf("the client was discarded:\n%s", log.String())
			}
		})
	}
}
