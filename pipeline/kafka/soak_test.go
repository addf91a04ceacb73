package kafka

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// A wire is all the connections of a worker. Cutting it is to the cluster what
// kill -9 of the worker is: nothing is said any more, not even good-bye.
type wire struct {
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return nil, errors.Join(errors.New("the wire is cut"), conn.Close())
	}
	w.conns = append(w.conns, conn)
	return conn, nil
}

// mend lets connections be made again.
func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut, w.conns = false, nil
}

func (w *wire) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for _, c := range w.conns {
		_ = c.Close() // which may be closed already
	}
}

// worker is a process of the soak: killed, and started again under its name.
type worker struct {
	wire *wire
	stop context.CancelFunc
}

// TestKilledWorkersLoseAndDoubleNothing kills workers at random while they copy.
// Committed output is then the input, each record once and, by key, in order.
func TestKilledWorkersLoseAndDoubleNothing(t *testing.T) {
	for _, tt := range []struct {
		name            string
		static          bool
		records, kills  int
		workers, within int
	}{
		// A static member's partitions wait for its restart, so this one has
		// most of the kills in the least of time.
		{"static members", true, 150_000, 85, 3, 60},
		{"dynamic members", false, 50_000, 15, 3, 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(tt.within)*time.Second)
			defer cancel()
			c := newCluster(t, 6)

			var running sync.WaitGroup
			defer running.Wait()
			run := func(i int) *worker {
				w := &worker{wire: &wire{}}
				cfg := testConfig(c, nil)
				cfg.Client.dialTCP = w.wire.dial
				cfg.Instance, cfg.Sessions, cfg.Static = fmt.Sprint(i), 2, tt.static
				cfg.CommitInterval, cfg.TransactionTimeout = 5*time.Millisecond, 2*time.Second
				cfg.SessionTimeout = 500 * time.Millisecond
				cfg.NewHandler = func(int) (pipeline.Handler, error) { return &copier{}, nil }
				l, err := NewLoop(cfg)
				if err != nil {
					t.Fatal(err)
				}
				var ctx context.Context
				ctx, w.stop = context.WithCancel(context.Background())
				running.Go(func() {
					// A worker that was killed but goes on, as after a pause, is
					// fenced by the one that has its name now.
					if err := l.Run(ctx); err != nil && !errors.Is(err, ErrFenced) {
						t.Error(err)
					}
				})
				return w
			}
			workers := make([]*worker, tt.workers)
			for i := range workers {
				workers[i] = run(i)
			}
			defer func() {
				for _, w := range workers {
					w.stop()
				}
			}()

			// The input comes bit by bit, and while a bit is handled a worker dies.
			w, err := NewWriter(Config{Brokers: c.ListenAddrs()})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			for i := range tt.kills {
				ends := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Observe: true, Count: -1})
				write(t, w, i*tt.records/tt.kills, (i+1)*tt.records/tt.kills)
				if err := ends.Wait(ctx, 1); err != nil {
					t.Fatalf("after %d kills no batch ends any more: %v", i, err)
				}
				ends.Remove()
				k := rnd.IntN(len(workers))
				workers[k].wire.kill()
				workers[k].stop()
				workers[k] = run(k)
			}
			wantCopiedOnce(ctx, t, c, tt.records)
			waitFor(t, func() bool { return allCommitted(c) })
		})
	}
}

// wantCopiedOnce reads "out" as it grows, committed records only, until it has
// as many records as "in".
func wantCopiedOnce(ctx context.Context, t *testing.T, c *kfake.Cluster, n int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ConsumeTopics("out"),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	seen := make([]bool, n)
	last := map[string]string{}
	for left := n; left > 0; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%d records are missing: %v", left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			var i int
			if _, err := fmt.Sscanf(string(r.Value), "%d", &i); err != nil {
				t.Fatal(err)
			}
			if seen[i] {
				t.Fatalf("record %d is there twice", i)
			}
			seen[i] = true
			left--
			if key := string(r.Key); string(r.Value) <= last[key] {
				t.Fatalf("%s: %s after %s", key, r.Value, last[key])
			} else {
				last[key] = string(r.Value)
			}
		})
	}
}
