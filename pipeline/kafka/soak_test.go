package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// A wire is all connections of a worker. To the cluster, cutting it looks like kill -9 of
// the worker: it stops sending and does not leave its group.
type wire struct {
	mu    sync.Mutex // guards the fields below
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

// repair allows new connections.
func (w *wire) repair() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut, w.conns = false, nil
}

// kill closes all connections and refuses new ones.
func (w *wire) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for _, c := range w.conns {
		_ = c.Close() // it may be closed already
	}
}

// worker simulates a process that is killed and restarted with the same instance name.
type worker struct {
	wire *wire
	stop context.CancelFunc
}

// joined notes which members have asked to join a group, by their transactional ids. With
// it, a test ends the session of a killed member at once. So the session timeout can be
// longer than a busy machine keeps a living member from its heartbeats.
type joined struct {
	mu      sync.Mutex
	members map[string][]string // guarded by mu
}

func noteJoined(c *cluster) *joined {
	j := &joined{members: map[string][]string{}}
	c.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if r := req.(*kmsg.JoinGroupRequest); r.MemberID != "" && r.InstanceID == nil {
			j.mu.Lock()
			defer j.mu.Unlock()
			for _, p := range r.Protocols {
				var meta kmsg.ConsumerMemberMetadata
				if meta.ReadFrom(p.Metadata) != nil {
					continue
				}
				if _, id, ok := bytes.Cut(meta.UserData, memberMark("")); ok {
					j.members[string(id)] = append(j.members[string(id)], r.MemberID)
				}
			}
		}
		return nil, nil, false
	})
	return j
}

// endSessions ends the group sessions of the members of a transactional id.
func (j *joined) endSessions(t *testing.T, cl *kgo.Client, txnID string) {
	t.Helper()
	j.mu.Lock()
	ids := j.members[txnID]
	delete(j.members, txnID)
	j.mu.Unlock()
	for _, id := range slices.Compact(ids) {
		if err := leaveClassic(t.Context(), cl, "g", id, nil); err != nil && !errors.Is(err, kerr.UnknownMemberID) {
			t.Fatal(err)
		}
	}
}

// TestKilledWorkersLoseAndRepeatNothing kills workers at random while they copy. The
// committed output must equal the input: each record once, in order per key.
func TestKilledWorkersLoseAndRepeatNothing(t *testing.T) {
	for _, tt := range []struct {
		name            string
		static          bool
		records, kills  int
		workers, within int // seconds, to end a run that hangs; a busy machine needs more than a minute
	}{
		// The partitions of a static member wait for its restart without a
		// rebalance, so this case can have most of the kills in little time.
		{"static members", true, 150_000, 85, 3, 300},
		{"dynamic members", false, 50_000, 15, 3, 300},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(tt.within)*time.Second)
			defer cancel()
			c := newCluster(t, 6)
			members := noteJoined(c)
			admin, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...))
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close()

			var running sync.WaitGroup
			defer running.Wait()
			run := func(i int) *worker {
				w := &worker{wire: &wire{}}
				cfg := testConfig(c, nil)
				cfg.Client.dialTCP = w.wire.dial
				cfg.Instance, cfg.Sessions, cfg.Static = fmt.Sprint(i), 2, tt.static
				cfg.CommitInterval, cfg.TransactionTimeout = 5*time.Millisecond, 10*time.Second
				cfg.SessionTimeout = 10 * time.Second
				cfg.NewHandler = func(int) (pipeline.Handler, error) { return &copier{}, nil }
				l, err := NewLoop(cfg)
				if err != nil {
					t.Fatal(err)
				}
				var ctx context.Context
				ctx, w.stop = context.WithCancel(context.Background())
				running.Go(func() {
					// A killed worker that continues, as after a pause, is fenced by
					// the worker that has its name now.
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

			// Write the input in steps. During each step, kill a worker.
			w, err := NewWriter(c.config())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			for i := range tt.kills {
				ends := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Observe: true, Count: -1})
				write(t, w, i*tt.records/tt.kills, (i+1)*tt.records/tt.kills)
				if err := ends.Wait(ctx, 1); err != nil {
					t.Fatalf("no batch ends after %d kills: %v", i, err)
				}
				ends.Remove()
				k := rnd.IntN(len(workers))
				workers[k].wire.kill()
				workers[k].stop()
				for session := range 2 {
					members.endSessions(t, admin, fmt.Sprintf("g-%d-%d", k, session))
				}
				workers[k] = run(k)
			}
			wantCopiedOnce(ctx, t, c, tt.records)
			waitFor(t, func() bool { return allCommitted(c) })
		})
	}
}

// wantCopiedOnce reads the committed records of "out" until it has n of them, and checks
// that each is there once and in order per key.
func wantCopiedOnce(ctx context.Context, t *testing.T, c *cluster, n int) {
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
				t.Fatalf("record %d was written twice", i)
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
