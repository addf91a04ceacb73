package kafka

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"

	"millrace/pipeline"
)

// memberships are the kinds of membership in which a successor can take the place of a
// worker that was killed.
var memberships = []struct {
	name     string
	protocol GroupProtocol
	static   bool
}{
	{"static", ClassicProtocol, true},
	{"dynamic", ClassicProtocol, false},
	{"static, consumer protocol", ConsumerProtocol, true},
}

// fastHeartbeats is how often members of the consumer protocol learn of changes.
var fastHeartbeats = kfake.BrokerConfigs(map[string]string{"group.consumer.heartbeat.interval.ms": "100"})

// A worker that was killed is still a member of its group. Its successor neither waits for
// it nor makes the other workers wait: the timeouts here are longer than the test.
func TestASuccessorDoesNotWaitForItsKilledPredecessor(t *testing.T) {
	for _, m := range memberships {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 8, fastHeartbeats)
			inject(t, c, 0, 100)
			begin := func(name string) ([]*assignee, *wire) {
				sessions, w := []*assignee{{}, {}}, &wire{}
				cfg := testConfig(c, nil)
				cfg.NewHandler = func(n int) (pipeline.Handler, error) { return sessions[n], nil }
				cfg.Instance, cfg.Sessions, cfg.Static, cfg.Protocol = name, 2, m.static, m.protocol
				cfg.SessionTimeout, cfg.TransactionTimeout = 4*time.Minute, 4*time.Minute
				cfg.Client.dialTCP = w.dial
				start(t, cfg)
				return sessions, w
			}
			even := func(sessions ...*assignee) func() bool {
				return func() bool {
					return !slices.ContainsFunc(sessions, func(s *assignee) bool { return len(s.partitions()) != 2 })
				}
			}
			healthy, _ := begin("a")
			killed, w := begin("b")
			waitFor(t, even(append(killed, healthy...)...))
			wantEach(t, committed(t, c, "out", 100), 100)
			w.kill()
			successor, _ := begin("b")
			waitFor(t, even(append(successor, healthy...)...))
			inject(t, c, 100, 200)
			wantEach(t, committed(t, c, "out", 200), 200)
		})
	}
}

// The later of two static workers with the same name wins, also if the first one has nothing
// to write and so does not learn that its transactional id is taken.
func TestTheLaterWorkerOfTheSameInstanceWins(t *testing.T) {
	for _, protocol := range []GroupProtocol{ClassicProtocol, ConsumerProtocol} {
		t.Run(string(protocol), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 4, fastHeartbeats)
			worker := func() (*assignee, LoopConfig) {
				h := &assignee{}
				cfg := testConfig(c, h)
				cfg.Static, cfg.Protocol, cfg.SessionTimeout = true, protocol, time.Minute
				return h, cfg
			}
			h, cfg := worker()
			first, err := NewLoop(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- first.Run(t.Context()) }()
			waitFor(t, func() bool { return len(h.partitions()) == 4 })
			later, cfg := worker()
			start(t, cfg)
			if err := <-ended; !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "--instance") {
				t.Errorf("the first worker ended with %v", err)
			}
			inject(t, c, 0, 100)
			wantEach(t, committed(t, c, "out", 100), 100)
			if n := len(later.partitions()); n != 4 {
				t.Errorf("the later worker has %d partitions", n)
			}
		})
	}
}

// A session of the consumer protocol does not send its session timeout. It is a setting of
// the group.
func TestAGroupOfTheConsumerProtocolGetsTheSessionTimeout(t *testing.T) {
	c := newCluster(t, 1)
	inject(t, c, 0, 10)
	cfg := testConfig(c, &copier{})
	cfg.Protocol, cfg.SessionTimeout = ConsumerProtocol, 50*time.Second
	start(t, cfg)
	wantEach(t, committed(t, c, "out", 10), 10)
	cl := c.client(t)
	defer cl.Close()
	if got, err := readSessionTimeout(t.Context(), cl, "g"); err != nil || got != 50*time.Second {
		t.Errorf("the session timeout of the group is %v, %v", got, err)
	}
}

// A member that its group removed may have a twin. The reason says so in the log and in
// /readyz.
func TestAMemberThatWasRemovedNamesItsInstance(t *testing.T) {
	loop, err := NewLoop(LoopConfig{Client: Config{Brokers: []string{"127.0.0.1:1"}}, Group: "g", Topics: []string{"in"}, Instance: "a", NewHandler: func(int) (pipeline.Handler, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	err = loop.sessions[0].removed(fmt.Errorf("unable to join group session: %w", kerr.UnknownMemberID))
	if !errors.Is(err, kerr.UnknownMemberID) || !strings.Contains(err.Error(), "another worker with the same --instance a has started") || !strings.Contains(err.Error(), "give each worker its own --instance") {
		t.Errorf("the reason is %v", err)
	}
	if got := loop.sessions[0].removed(errors.New("other")); got.Error() != "other" {
		t.Error("another error is changed")
	}
}
