package kafka

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// fetchWait is how long a broker holds back an empty answer, and so how
	// often an idle client hears of it. It is well below silence.
	fetchWait = time.Second
	// silence is how long no broker may answer before the client is not ready.
	silence = 4 * time.Second
)

// link watches what passes between a client and its brokers: whether they answer. The client itself tries again
// for ever, without a word; who asks whether it is ready has to be told.
type link struct {
	inits atomic.Int64 // requests for a producer id that were written

	mu    sync.Mutex
	heard time.Time // the last answer
	err   error     // the last failure since then
}

var (
	_ kgo.HookBrokerWrite   = (*link)(nil)
	_ kgo.HookBrokerConnect = (*link)(nil)
	_ kgo.HookBrokerE2E     = (*link)(nil)
)

// newLink gives the client a while to connect.
func newLink() *link { return &link{heard: time.Now()} }

// OnBrokerWrite counts.
func (l *link) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key == int16(kmsg.InitProducerID) {
		l.inits.Add(1)
	}
}

// OnBrokerConnect hears of a connection that did not come about.
func (l *link) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	l.note(err)
}

// OnBrokerE2E hears of an answer, or of its absence.
func (l *link) OnBrokerE2E(_ kgo.BrokerMetadata, _ int16, e2e kgo.BrokerE2E) { l.note(e2e.Err()) }

func (l *link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err = err; err == nil {
		l.heard = time.Now()
	}
}

// why says since when no broker answers, and with what error; "" if one does.
func (l *link) why() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	quiet := time.Since(l.heard)
	switch {
	case quiet < silence:
		return ""
	case l.err == nil:
		return fmt.Sprintf("no broker has answered for %v", quiet.Round(time.Second))
	default:
		return fmt.Sprintf("no broker has answered for %v: %v", quiet.Round(time.Second), l.err)
	}
}
