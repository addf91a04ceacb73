package sandbox

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A member that dies while it waits for the response to its JoinGroup request loses its
// partitions to the live members.
func TestMemberThatDiesDuringJoinIsRemoved(t *testing.T) {
	t.Parallel() // waits for a session timeout, which is at least 6 s
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	admin := consumer(t, s)
	if _, err := kadm.NewClient(admin).CreateTopic(ctx, 4, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	opts := []kgo.Opt{
		kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.SessionTimeout(6 * time.Second), kgo.HeartbeatInterval(200 * time.Millisecond),
		kgo.RebalanceTimeout(2 * time.Second),
		kgo.Balancers(kgo.RangeBalancer()), // a cooperative group would rebalance again, and so detect the death
	}
	var mu sync.Mutex
	assigned := map[int32]bool{} // partitions of the survivor; guarded by mu
	all := make(chan struct{}, 1)
	survivor := consumer(t, s, append(opts,
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range ps["t"] {
				assigned[p] = true
			}
			if len(assigned) == 4 {
				select {
				case all <- struct{}{}:
				default:
				}
			}
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range ps["t"] {
				delete(assigned, p)
			}
		}))...)
	poll(ctx, survivor)
	<-all

	// The second member sends JoinGroup. The group answers only after the first member
	// has joined again. Cut the second member's connection before that.
	wire := &cutter{}
	joined := false
	s.broker.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
		join := req.(*kmsg.JoinGroupRequest)
		if !joined && join.MemberID != "" && wire.isVictim(join.MemberID) {
			joined = true
			time.AfterFunc(10*time.Millisecond, wire.cut) // by then the broker has the request and waits for the first member
		}
		return nil, nil, false
	})
	victim := consumer(t, s, append(opts, kgo.ClientID("dies"), kgo.Dialer(wire.dial), kgo.RetryTimeout(100*time.Millisecond), kgo.RequestRetries(1))...)
	poll(ctx, victim)
	for {
		mu.Lock()
		n := len(assigned)
		mu.Unlock()
		if wire.isCut() && n == 4 {
			groups, err := kadm.NewClient(admin).DescribeGroups(ctx, "g")
			if err != nil {
				t.Fatal(err)
			}
			if g := groups["g"]; g.State == "Stable" && len(g.Members) == 1 {
				return
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("connection cut: %v; the survivor has %d of 4 partitions", wire.isCut(), n)
		}
	}
}

func consumer(t *testing.T, s *Sandbox, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(s.Brokers()...), kgo.MetadataMinAge(50*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// poll polls a consumer until the context ends.
func poll(ctx context.Context, cl *kgo.Client) {
	go func() {
		for ctx.Err() == nil && !cl.PollFetches(ctx).IsClientClosed() {
		}
	}()
}

// cutter dials connections, and can close them and refuse new ones.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
	gone  bool       // guarded by mu
}

func (c *cutter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil, net.ErrClosed
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err == nil {
		c.conns = append(c.conns, conn)
	}
	return conn, err
}

// isVictim reports whether a member id belongs to the victim: kfake derives member ids from
// client ids.
func (c *cutter) isVictim(id string) bool { return len(id) > 4 && id[:4] == "dies" }

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

func (c *cutter) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}
