// Package kafka is the only package that knows the Kafka client. It runs a
// [pipeline.Handler] over topics as a consumer group, exactly once ([Loop]),
// writes records ([Writer]), reads a partition to its end ([ReadPartition]),
// follows a topic for a table ([Tail]) and keeps the topics as declared
// ([EnsureTopics]). It never looks into a record's value.
//
// Start at [Loop]; the rules that make it exactly once stand in session.go.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
)

// Guarantee is what a [Loop] promises of its output.
type Guarantee string

const (
	// ExactlyOnce commits outputs and input offsets in one transaction.
	ExactlyOnce Guarantee = "exactly_once"
	// AtLeastOnce commits input offsets after the outputs are acknowledged:
	// after a crash the last batch comes again.
	AtLeastOnce Guarantee = "at_least_once"
)

// GroupProtocol is the way in which a group shares out its partitions, by the
// names of Kafka's setting group.protocol.
type GroupProtocol string

const (
	// ClassicProtocol lets a member do it: cooperative, and sticky.
	ClassicProtocol GroupProtocol = "classic"
	// ConsumerProtocol lets the broker do it (KIP-848). It needs brokers of
	// version 4.3 or newer: older ones may refuse a commit with
	// STALE_MEMBER_EPOCH in normal work (KIP-1251). The session timeout is then
	// the brokers' to say.
	ConsumerProtocol GroupProtocol = "consumer"
)

// A Partition is one partition of a topic, with where its readers may stand.
type Partition struct {
	Topic     string
	Partition int32
	Committed int64 // the group's next offset, -1 if it has none
	Start     int64 // first offset that still exists
	End       int64 // the last stable offset: where a reader of committed records ends now
}

// An Assigner is a [pipeline.Handler] that keeps state by partition.
//
// Both calls come from the group's own goroutine: no record of a partition is
// handled before Assign returned for it, but records of others may be meanwhile.
type Assigner interface {
	// Assign returns the offset to read each of the partitions from, in order. If
	// that is below what is committed, the group's offset stays until it is reached.
	// Its context ends when the group takes the partitions away again; an
	// error makes the group try again.
	Assign(ctx context.Context, ps []Partition) ([]int64, error)
	// Revoke says that the partitions are gone. Only Topic and Partition of
	// each are set.
	Revoke(ps []Partition)
}

// DefaultMemory is the default of [LoopConfig].Memory, in bytes.
const DefaultMemory = 256 << 20

// LoopConfig configures a [Loop]. Topics, Group and NewHandler are required;
// what is zero gets the default named beside it.
type LoopConfig struct {
	Client    Config
	Group     string
	Topics    []string
	Writes    []string  // topics whose own limit of size counts: see [Limited]; none
	Guarantee Guarantee // ExactlyOnce

	// Instance names this worker among those of its group and is the same
	// after a restart: with the session's number it makes the transactional id.
	Instance string
	// Static makes each session a static member of the group, by the same name:
	// a restart within the session timeout moves no partitions.
	Static bool
	// Protocol is how the group shares out the partitions: ClassicProtocol.
	Protocol GroupProtocol

	// Memory is about how many bytes the sessions together may hold of records
	// that were read, are handled or are being written; 256 MiB. What a batch
	// may read, a fetch bring and a client buffer follow from it, and that no record
	// is written that is larger than a quarter of a session's part.
	Memory int
	// MaxPoll is how many records are read at a time at most, which bounds how
	// far a batch can run past its end; 4096. Give less if records take long.
	MaxPoll int

	Sessions           int           // members of the group in this process; 1
	CommitInterval     time.Duration // how long a transaction collects records; 100 ms
	TransactionTimeout time.Duration // how long a crashed worker's partitions wait; 10 s
	SessionTimeout     time.Duration // how long the group waits for a silent member; 45 s
	Drain              time.Duration // how long a batch may go on after the context has ended; 5 s

	// NewHandler returns the handler of a session, 0 <= session < Sessions.
	NewHandler func(session int) (pipeline.Handler, error)

	Metrics *Metrics // none
	Logger  *slog.Logger
}

func (c *LoopConfig) setDefaults() error {
	switch {
	case c.Group == "":
		return errors.New("a loop needs a group")
	case len(c.Topics) == 0:
		return errors.New("a loop needs topics")
	case c.NewHandler == nil:
		return errors.New("a loop needs a handler")
	case c.Guarantee == "":
		c.Guarantee = ExactlyOnce
	case c.Guarantee != ExactlyOnce && c.Guarantee != AtLeastOnce:
		return fmt.Errorf("guarantee %q: expected %s or %s", c.Guarantee, ExactlyOnce, AtLeastOnce)
	}
	if c.Instance == "" {
		c.Instance = "0"
	}
	if c.Sessions <= 0 {
		c.Sessions = 1
	}
	def(&c.CommitInterval, 100*time.Millisecond)
	def(&c.TransactionTimeout, 10*time.Second)
	def(&c.SessionTimeout, 45*time.Second)
	def(&c.Drain, 5*time.Second)
	switch {
	case c.Memory <= 0:
		c.Memory = DefaultMemory
	case c.Memory/c.Sessions < minSessionMemory:
		return fmt.Errorf("%d MiB of memory are too few for %d sessions: give %d MiB to each", c.Memory>>20, c.Sessions, minSessionMemory>>20)
	}
	if c.MaxPoll <= 0 {
		c.MaxPoll = maxPoll
	}
	switch c.Protocol {
	case "":
		c.Protocol = ClassicProtocol
	case ClassicProtocol, ConsumerProtocol:
	default:
		return fmt.Errorf("group.protocol %q: expected %s or %s", c.Protocol, ClassicProtocol, ConsumerProtocol)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.CommitInterval > c.TransactionTimeout/3 {
		return fmt.Errorf("a commit interval of %v leaves no room within a transaction timeout of %v: at most a third of it", c.CommitInterval, c.TransactionTimeout)
	}
	return nil
}

// minSessionMemory leaves room for some records of the default greatest size.
const minSessionMemory = 16 << 20

// The shares of a session's part of the memory: an eighth for the input of a
// batch, two fetches under way, packed, of a sixteenth each, and a quarter each
// for what such are unpacked to and for what the client has not written yet.

func (c *LoopConfig) batchBytes() int    { return c.Memory / c.Sessions / 8 }
func (c *LoopConfig) fetchBytes() int32  { return int32(min(c.Memory/c.Sessions/16, 64<<20)) }
func (c *LoopConfig) unpackedBytes() int { return c.Memory / c.Sessions / 4 }
func (c *LoopConfig) bufferedBytes() int { return c.Memory / c.Sessions / 4 }

func def(d *time.Duration, to time.Duration) {
	if *d <= 0 {
		*d = to
	}
}

// A Loop reads topics as members of a consumer group, hands the records to
// handlers and commits what they emit. See [LoopConfig] for its promises.
type Loop struct {
	cfg      LoopConfig
	progress progress
	sessions []*session

	brokers sync.Mutex // guards checked
	checked bool       // what the brokers can do
}

// NewLoop returns a Loop; it connects when it runs.
func NewLoop(cfg LoopConfig) (*Loop, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if _, err := cfg.Client.Options(); err != nil {
		return nil, err
	}
	l := &Loop{cfg: cfg}
	cfg.Metrics.watch(cfg.Group, &l.progress)
	for i := range cfg.Sessions {
		l.sessions = append(l.sessions, &session{
			loop:   l,
			number: i,
			txnID:  cfg.Group + "-" + cfg.Instance + "-" + strconv.Itoa(i),
			log:    cfg.Logger.With("group", cfg.Group, "session", i),
			state:  state{why: "starting"},
			link:   newLink(),
		})
	}
	return l, nil
}

// Run works until the context ends, then finishes and commits the batches at
// hand, leaves the group and returns nil. It returns early only with an error
// of [pipeline.ClassFatal].
func (l *Loop) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range l.sessions {
		g.Go(func() error { return s.run(ctx) })
	}
	return g.Wait()
}

// Ready returns nil when every session is a member of the group, its last batch
// went through and brokers answer it; else the reason why not, in words. That no
// broker answers is seen within five seconds.
func (l *Loop) Ready() error {
	for _, s := range l.sessions {
		why := s.state.get()
		if silent := s.link.why(); silent != "" {
			why = silent
		}
		if why != "" {
			return fmt.Errorf("group %s, session %d: %s", l.cfg.Group, s.number, why)
		}
	}
	return nil
}

// Progress returns where the sessions of this process stand in each of the
// partitions they have.
func (l *Loop) Progress() []PartitionProgress { return l.progress.all() }

// PartitionProgress says how far a partition has been read and committed.
type PartitionProgress struct {
	Topic     string
	Partition int32
	Position  int64 // next offset to read, committed
	End       int64 // last stable offset when it was last seen

	last time.Time // timestamp of the last record below Position
}

// Lag returns the number of offsets between position and end.
func (p PartitionProgress) Lag() int64 { return max(0, p.End-p.Position) }

// state is why a session is not ready, "" if it is.
type state struct {
	mu  sync.Mutex
	why string
}

func (s *state) set(why string) {
	s.mu.Lock()
	s.why = why
	s.mu.Unlock()
}

func (s *state) get() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}
