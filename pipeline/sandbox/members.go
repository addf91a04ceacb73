package sandbox

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// memberWatcher removes dead members from their groups if they died while they waited
// for the response to a JoinGroup request. A real broker removes them after the session
// timeout. kfake starts that timeout only when it sends the response, so such a member
// would keep its partitions forever. Groups of the consumer protocol (KIP-848) have no
// joins and are not affected.
type memberWatcher struct {
	client   *kgo.Client
	interval time.Duration // time between two sweeps

	mu   sync.Mutex
	seen map[member]lastSeen // guarded by mu; written by the broker's goroutines and by run
}

type member struct{ group, id string }

// lastSeen is the last sign of life of a member, and its session timeout. The timeout
// is 0 if no join was seen.
type lastSeen struct {
	at      time.Time
	timeout time.Duration
}

// sessionTimeout is the assumed timeout of a member whose join was not seen.
const sessionTimeout = 45 * time.Second

// watchMembers starts to record the requests of members. The caller must call run,
// which removes dead members and closes the watcher's client.
func watchMembers(c *kfake.Cluster, interval time.Duration) (*memberWatcher, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...))
	if err != nil {
		return nil, err
	}
	m := &memberWatcher{client: client, interval: interval, seen: map[member]lastSeen{}}
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat} {
		// The function returns false (not handled), so kfake still processes the request
		// and keeps the function for later requests.
		c.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			m.observe(req)
			return nil, nil, false
		})
	}
	return m, nil
}

// observe records a request as a sign of life of its member.
func (m *memberWatcher) observe(req kmsg.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var sender member
	switch req := req.(type) {
	case *kmsg.JoinGroupRequest:
		sender = member{req.Group, req.MemberID}
		m.seen[sender] = lastSeen{timeout: time.Duration(req.SessionTimeoutMillis) * time.Millisecond}
	case *kmsg.SyncGroupRequest:
		sender = member{req.Group, req.MemberID}
	case *kmsg.HeartbeatRequest:
		sender = member{req.Group, req.MemberID}
	}
	l := m.seen[sender]
	l.at = time.Now()
	m.seen[sender] = l
}

// run sweeps the groups until the context ends. It then closes the client.
func (m *memberWatcher) run(ctx context.Context) {
	defer m.client.Close()
	tick := time.NewTicker(m.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.sweep(ctx)
		}
	}
}

// sweep removes members that were silent for longer than their session timeout. It
// ignores errors, because the next sweep tries again.
func (m *memberWatcher) sweep(ctx context.Context) {
	adm := kadm.NewClient(m.client)
	groups, err := adm.DescribeGroups(ctx)
	if err != nil {
		return
	}
	now := time.Now()
	alive := map[member]lastSeen{}
	for _, g := range groups {
		for _, desc := range g.Members {
			id := member{g.Group, desc.MemberID}
			l := m.lastSeen(id)
			if l.at.IsZero() {
				l.at = now
			}
			if l.timeout == 0 {
				l.timeout = sessionTimeout
			}
			alive[id] = l
			// During a rebalance, live members may be silent while they wait for a response.
			if g.State == "Stable" && now.Sub(l.at) > l.timeout+m.interval {
				m.remove(ctx, id)
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// Entries of m.seen may be newer than those read above, so they win. An entry of an
	// unknown member is kept for a while: it may belong to a pending join.
	for id, l := range m.seen {
		if _, ok := alive[id]; ok || now.Sub(l.at) < sessionTimeout {
			alive[id] = l
		}
	}
	m.seen = alive
}

// remove sends a LeaveGroup request in the name of a member.
func (m *memberWatcher) remove(ctx context.Context, id member) {
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group, leave.MemberID = id.group, id.id
	gone := kmsg.NewLeaveGroupRequestMember()
	gone.MemberID = id.id
	leave.Members = append(leave.Members, gone)
	_, _ = leave.RequestWith(ctx, m.client) // the next sweep tries again
}

func (m *memberWatcher) lastSeen(id member) lastSeen {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[id]
}
