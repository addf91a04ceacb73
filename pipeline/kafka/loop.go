// Package kafka is the only package that uses the Kafka client. It runs a
// [pipeline.Handler] over topics as a consumer group, exactly once ([Loop]),
// writes records ([Writer]), reads a partition to its end ([ReadPartition]),
// follows single partitions ([Follower]) or a whole topic for a table ([Tail]), and
// creates and checks topics ([EnsureTopics]). It never parses a record's value.
//
// Start reading at [Loop]. The rules for exactly-once processing are at the top of
// session.go.
//
// A Loop runs one goroutine per session. That goroutine owns the session's client,
// batch and handler. The client calls the group callbacks (session.assign,
// session.revoke) and the produce promises from its own goroutines; fields that
// these share with the session are marked.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
)

// Guarantee is the delivery guarantee of a [Loop] for its output.
type Guarantee string

const (
	// ExactlyOnce commits outputs and input offsets in one transaction.
	ExactlyOnce Guarantee = "exactly_once"
	// AtLeastOnce commits input offsets after the outputs are acknowledged.
	// After a crash the last batch is handled again.
	AtLeastOnce Guarantee = "at_least_once"
)

// GroupProtocol is the protocol by which a group assigns partitions, a value of
// Kafka's setting group.protocol.
type GroupProtocol string

const (
	// ClassicProtocol lets a member assign partitions, cooperatively and sticky.
	ClassicProtocol GroupProtocol = "classic"
	// ConsumerProtocol lets the broker assign partitions (KIP-848). It needs
	// brokers of version 4.3 or newer: older ones may refuse a commit with
	// STALE_MEMBER_EPOCH in normal operation (KIP-1251). With it, the brokers set
	// the session timeout.
	ConsumerProtocol GroupProtocol = "consumer"
)

// A Partition is one partition of a topic and its offsets.
type Partition struct {
	Topic     string
	Partition int32
	Committed int64 // the group's next offset, -1 if it has none
	Start     int64 // first offset that still exists
	End       int64 // the last stable offset: the current end for a reader of committed records
}

// An Assigner is a [pipeline.Handler] that keeps state per partition.
//
// The client's group goroutine makes both calls. No record of a partition is handled
// before Assign has returned for it, but records of other partitions may be handled
// at the same time.
type Assigner interface {
	// Assign returns the offset to read each partition from, in the order of ps. If
	// an offset is below the committed one, the group's offset stays unchanged until
	// reading has reached it. The context ends when the group revokes the partitions;
	// after an error the group tries again.
	Assign(ctx context.Context, ps []Partition) ([]int64, error)
	// Revoke reports that the partitions are no longer assigned. Only their Topic
	// and Partition are set.
	Revoke(ps []Partition)
}

// A Rereader is an [Assigner] that may read records again that it has handled before, to
// complete something else. They are no lag.
type Rereader interface {
	Assigner
	// Handled returns the offset below which everything is handled in a partition that
	// Assign has just assigned.
	Handled(topic string, partition int32) int64
}

// DefaultMemory is the default of [LoopConfig].Memory, in bytes.
const DefaultMemory = 256 << 20

// LoopConfig configures a [Loop]. Topics, Group and NewHandler are required; a zero
// field gets the default in its comment.
type LoopConfig struct {
	Client    Config
	Group     string
	Topics    []string
	Writes    []string  // topics whose own size limit applies, see [SizeLimited]; none
	Guarantee Guarantee // ExactlyOnce

	// Known holds topics as they were when the handlers were made, by name. If one of
	// them changes, the loop ends: see [ErrRecreated]. Nil: no topic is compared.
	Known map[string]TopicInfo

	// Instance is the unique name of this worker in its group. It stays the same
	// after a restart: the transactional id is formed from group, instance and
	// session number.
	Instance string
	// Static makes each session a static member of the group, named by its
	// transactional id: a restart within the session timeout moves no partitions.
	Static bool
	// AcceptLoss continues at the start of the log if retention deleted offsets that the
	// group had not read. Otherwise the loop ends.
	AcceptLoss bool
	// Protocol is how the group assigns partitions; ClassicProtocol.
	Protocol GroupProtocol

	// Memory is the approximate limit, in bytes, for the records that all sessions
	// together have read, are handling or are writing; 256 MiB. It determines the
	// size limits of a batch, of a fetch and of the client's buffer.
	Memory int
	// Largest is the size of the largest batch that the topics in Writes take, see
	// [Limits.Largest]. If a quarter of a session's share is less, the session's buffer
	// takes it nevertheless: otherwise the size of the largest record would depend on
	// Memory and Sessions.
	Largest int
	// MaxPoll is the largest number of records per poll, which bounds how far a
	// batch can exceed its limits; 4096. Use less if a record takes long to handle.
	MaxPoll int

	Sessions           int           // members of the group in this process; 1
	CommitInterval     time.Duration // how long a transaction collects records; 100 ms
	TransactionTimeout time.Duration // how long the partitions of a crashed worker stay blocked; 10 s
	SessionTimeout     time.Duration // how long the group waits for a silent member; 45 s
	Drain              time.Duration // how long a batch may continue after the context has ended; 5 s

	// NewHandler returns the handler of a session, 0 <= session < Sessions.
	NewHandler func(session int) (pipeline.Handler, error)

	Metrics *Metrics // no metrics if nil
	Logger  *slog.Logger
}

func (c *LoopConfig) setDefaults() error {
	switch {
	case c.Group == "":
		return errors.New("the loop configuration has no group")
	case len(c.Topics) == 0:
		return errors.New("the loop configuration has no topics")
	case c.NewHandler == nil:
		return errors.New("the loop configuration has no handler")
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
	setDefault(&c.CommitInterval, 100*time.Millisecond)
	setDefault(&c.TransactionTimeout, 10*time.Second)
	setDefault(&c.SessionTimeout, 45*time.Second)
	setDefault(&c.Drain, 5*time.Second)
	switch {
	case c.Memory <= 0:
		c.Memory = DefaultMemory
	case c.Memory/c.Sessions < minSessionMemory:
		return fmt.Errorf("%d MiB of memory is too little for %d sessions: each session needs at least %d MiB", c.Memory>>20, c.Sessions, minSessionMemory>>20)
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
		return fmt.Errorf("the commit interval %v is too long for the transaction timeout %v: use at most a third of it", c.CommitInterval, c.TransactionTimeout)
	}
	return nil
}

// minSessionMemory leaves room for several records of the default maximum size.
const minSessionMemory = 16 << 20

// The memory of a session is divided as follows: an eighth for the input of a batch;
// a sixteenth for each of two compressed fetches in flight; a quarter for the
// decompressed fetches; a quarter for records that the client has not written yet.

func (c *LoopConfig) batchBytes() int    { return c.Memory / c.Sessions / 8 }
func (c *LoopConfig) fetchBytes() int32  { return int32(min(c.Memory/c.Sessions/16, 64<<20)) }
func (c *LoopConfig) unpackedBytes() int { return c.Memory / c.Sessions / 4 }
func (c *LoopConfig) bufferedBytes() int { return max(c.Memory/c.Sessions/4, c.Largest) }

func setDefault(d *time.Duration, to time.Duration) {
	if *d <= 0 {
		*d = to
	}
}

// A Loop reads topics as one or more members of a consumer group, passes the records
// to handlers and commits the records they emit. See [Guarantee] and [LoopConfig].
type Loop struct {
	cfg      LoopConfig
	progress progress
	marked   marked
	sessions []*session

	brokers sync.Mutex // guards checked
	checked bool       // whether checkBrokers has had an answer
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
	for i := range cfg.Sessions {
		l.sessions = append(l.sessions, &session{
			loop:   l,
			number: i,
			txnID:  cfg.Group + "-" + cfg.Instance + "-" + strconv.Itoa(i),
			log:    cfg.Logger.With("group", cfg.Group, "session", i),
			state:  state{reason: "starting"},
			link:   newLink(),
		})
	}
	return l, nil
}

// Run works until the context ends. It then finishes and commits the current batches,
// leaves the group and returns nil. It returns early only with an error of
// [pipeline.ClassFatal].
func (l *Loop) Run(ctx context.Context) error {
	defer l.cfg.Metrics.watch(l.cfg.Group, &l.progress)()
	stopped := ctx
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range l.sessions {
		g.Go(func() error { return s.run(ctx, stopped) })
	}
	g.Go(func() error {
		l.progress.watchEnds(ctx, l.clients)
		return nil
	})
	if len(l.cfg.Known) > 0 {
		g.Go(func() error { return watch(ctx, l.cfg.Known, l.sessions[0].client.Load) })
	}
	return g.Wait()
}

// clients returns the clients of the sessions; nil for one that has none.
func (l *Loop) clients() (all []*kgo.Client) {
	for _, s := range l.sessions {
		all = append(all, s.client.Load())
	}
	return all
}

// Ready returns nil if every session is a member of the group, its last batch
// committed and brokers answer it; else an error with the reason. It reports an
// outage of the brokers within five seconds.
func (l *Loop) Ready() error {
	for _, s := range l.sessions {
		reason := s.state.get()
		if outage := s.link.outage(); outage != "" {
			reason = outage
		}
		if reason != "" {
			return fmt.Errorf("group %s, session %d: %s", l.cfg.Group, s.number, reason)
		}
	}
	return nil
}

// Progress returns the positions of this process's sessions in their partitions.
func (l *Loop) Progress() []PartitionProgress { return l.progress.all() }

// ProgressOf returns the position in one partition, zero if it is not assigned.
func (l *Loop) ProgressOf(topic string, partition int32) PartitionProgress {
	return l.progress.of(topic, partition)
}

// state is the reason why a session is not ready, "" if it is ready.
type state struct {
	mu     sync.Mutex // guards reason
	reason string
}

func (s *state) set(reason string) {
	s.mu.Lock()
	s.reason = reason
	s.mu.Unlock()
}

func (s *state) get() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}
