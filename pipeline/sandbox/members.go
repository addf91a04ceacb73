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

// members takes out of their groups the members that have died while they
// waited for the answer to a join. A broker does that after the session timeout;
// kfake begins to count only when the answer has been sent, so such a member
// would keep its partitions for ever. Groups of the consumer protocol, which
// have no joins, are not touched.
type members struct {
	client *kgo.Client
	sweeps time.Duration // time between two looks

	mu   sync.Mutex
	life map[member]life
}

type member struct{ group, id string }

// life is the last that was heard of a member.
type life struct {
	at      time.Time
	timeout time.Duration
}

// sessionTimeout is that of a member whose join was not seen.
const sessionTimeout = 45 * time.Second

// watchMembers begins to listen to what members say. Run does the rest.
func watchMembers(c *kfake.Cluster, sweeps time.Duration) (*members, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...))
	if err != nil {
		return nil, err
	}
	m := &members{client: client, sweeps: sweeps, life: map[member]life{}}
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat} {
		// Not handled, the request goes its way and the function stays.
		c.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			m.hear(req)
			return nil, nil, false
		})
	}
	return m, nil
}

func (m *members) hear(req kmsg.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var who member
	switch req := req.(type) {
	case *kmsg.JoinGroupRequest:
		who = member{req.Group, req.MemberID}
		m.life[who] = life{timeout: time.Duration(req.SessionTimeoutMillis) * time.Millisecond}
	case *kmsg.SyncGroupRequest:
		who = member{req.Group, req.MemberID}
	case *kmsg.HeartbeatRequest:
		who = member{req.Group, req.MemberID}
	}
	l := m.life[who]
	l.at = time.Now()
	m.life[who] = l
}

// run looks after the groups until the context ends.
func (m *members) run(ctx context.Context) {
	defer m.client.Close()
	tick := time.NewTicker(m.sweeps)
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

// sweep takes out who has been silent for too long. What fails is tried again by
// the next one.
func (m *members) sweep(ctx context.Context) {
	adm := kadm.NewClient(m.client)
	groups, err := adm.DescribeGroups(ctx)
	if err != nil {
		return
	}
	now := time.Now()
	alive := map[member]life{}
	for _, g := range groups {
		for _, desc := range g.Members {
			who := member{g.Group, desc.MemberID}
			l := m.last(who)
			if l.at.IsZero() {
				l.at = now
			}
			if l.timeout == 0 {
				l.timeout = sessionTimeout
			}
			alive[who] = l
			// While a rebalance is prepared, members wait and say nothing.
			if g.State == "Stable" && now.Sub(l.at) > l.timeout+m.sweeps {
				leave := kmsg.NewPtrLeaveGroupRequest()
				leave.Group, leave.MemberID = g.Group, desc.MemberID
				gone := kmsg.NewLeaveGroupRequestMember()
				gone.MemberID = desc.MemberID
				leave.Members = append(leave.Members, gone)
				_, _ = leave.RequestWith(ctx, m.client) // see above
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for who, l := range m.life { // what was heard meanwhile is newer
		if _, ok := alive[who]; ok || now.Sub(l.at) < sessionTimeout {
			alive[who] = l
		}
	}
	m.life = alive
}

func (m *members) last(who member) life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life[who]
}
