package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// fetchWait is how long a broker delays an empty fetch response. So an idle
	// client gets a response at least this often, well within outageAfter.
	fetchWait = time.Second
	// outageAfter is how long no broker may answer before the client is not ready.
	outageAfter = 4 * time.Second
)

// link is a hook that records whether brokers answer a client. The client retries
// forever without reporting an error, but readiness must show an outage. The client
// calls the hook methods from several goroutines.
type link struct {
	inits atomic.Int64 // InitProducerID requests sent

	mu    sync.Mutex // guards the fields below
	heard time.Time  // time of the last answer
	err   error      // last failure since then
}

var (
	_ kgo.HookBrokerWrite   = (*link)(nil)
	_ kgo.HookBrokerConnect = (*link)(nil)
	_ kgo.HookBrokerE2E     = (*link)(nil)
)

// newLink returns a link that counts as just answered: the client gets time to connect.
func newLink() *link { return &link{heard: time.Now()} }

// OnBrokerWrite counts InitProducerID requests: see rule 3 in session.go.
func (l *link) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key == int16(kmsg.InitProducerID) {
		l.inits.Add(1)
	}
}

// OnBrokerConnect records the result of a connection attempt.
func (l *link) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	l.note(err)
}

// OnBrokerE2E records whether a request was answered.
func (l *link) OnBrokerE2E(_ kgo.BrokerMetadata, _ int16, e2e kgo.BrokerE2E) { l.note(e2e.Err()) }

func (l *link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err = trimDial(err); err == nil {
		l.heard = time.Now()
	}
}

// explain adds to the end of a context that the client can reach no broker, if that is
// so: the client retries until then. It returns other errors, and nil, unchanged.
func (l *link) explain(err error) error {
	if err == nil || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return trimDial(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var unreachable *unreachableError
	if errors.As(err, &unreachable) || !errors.As(l.err, &unreachable) {
		return trimDial(err)
	}
	return fmt.Errorf("%w: %w", err, l.err)
}

// outage returns a text if no broker has answered for outageAfter, else "".
func (l *link) outage() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	quiet := time.Since(l.heard)
	switch {
	case quiet < outageAfter:
		return ""
	case l.err == nil:
		return fmt.Sprintf("no broker has answered for %v", quiet.Round(time.Second))
	default:
		return fmt.Sprintf("no broker has answered for %v: %v", quiet.Round(time.Second), l.err)
	}
}
