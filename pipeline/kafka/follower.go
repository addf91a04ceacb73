package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
	"millrace/pipeline/kafka/pool"
)

// A FollowHandler takes the records that a [Follower] reads. It emits nothing. Its
// calls do not overlap.
type FollowHandler interface {
	// Handle takes a record, whose bytes are valid until EndBatch. After an error
	// the Follower passes the record again.
	Handle(ctx context.Context, in *pipeline.Record) error
	// EndBatch is called at the end of a batch, also after an error of Handle.
	EndBatch(ctx context.Context) error
}

// FollowerConfig configures a [Follower]. Handler is required; a zero field gets
// the default in its comment.
type FollowerConfig struct {
	Client  Config
	Handler FollowHandler

	// Group labels the metrics: the group whose events are followed. The Follower
	// itself is not a member of any group.
	Group    string
	Memory   int           // approximate limit of bytes held in records; 64 MiB
	Interval time.Duration // how long a batch collects records; 100 ms

	Metrics *Metrics // no metrics if nil
	Logger  *slog.Logger
}

// A Follower reads the committed records of single partitions and continues as
// records arrive. It has no group, commits nothing and writes nothing. Partitions
// can be added and removed while it runs. One goroutine calls Run; the other
// methods are safe for concurrent use.
type Follower struct {
	cfg      FollowerConfig
	progress progress
	state    state
	link     *link

	// turn is held during a batch: while another goroutine holds it, no call of the
	// handler is running.
	turn sync.Mutex

	mu        sync.Mutex // guards the fields below
	at        map[topicPartition]followedAt
	added     int    // how many times Add was called
	interrupt func() // ends the current poll, because the partitions have changed
}

// followedAt is the position in a partition.
type followedAt struct {
	next  int64 // next offset to read
	added int   // value of Follower.added: distinguishes a partition that was removed and added again
}

// ErrOffsetGone is in the chain of the error with which [Follower.Run] ends when the
// next record of a partition no longer exists, so the caller must choose another
// offset to start from.
var ErrOffsetGone = errors.New("the offset to read next does not exist")

// NewFollower returns a Follower of no partitions; it connects when it runs.
func NewFollower(cfg FollowerConfig) (*Follower, error) {
	if _, err := cfg.Client.Options(); err != nil {
		return nil, err
	}
	if cfg.Handler == nil {
		return nil, errors.New("a follower needs a handler")
	}
	if cfg.Memory <= 0 {
		cfg.Memory = 64 << 20
	}
	setDefault(&cfg.Interval, 100*time.Millisecond)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Follower{cfg: cfg, link: newLink(), at: map[topicPartition]followedAt{}, interrupt: func() {}}
	return f, nil
}

// Add makes the Follower read a partition from a position on.
func (f *Follower) Add(from PartitionProgress) {
	tp := topicPartition{from.Topic, from.Partition}
	f.progress.assigned(from)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.added++
	f.at[tp] = followedAt{from.Position, f.added}
	f.interrupt()
}

// Remove makes the Follower stop reading a partition. When it returns, the handler
// has ended the batch with the partition's last record.
func (f *Follower) Remove(topic string, partition int32) {
	tp := topicPartition{topic, partition}
	f.mu.Lock()
	delete(f.at, tp)
	f.interrupt()
	f.mu.Unlock()
	f.turn.Lock()
	f.progress.drop(tp)
	f.turn.Unlock()
}

// Progress returns the position in each partition.
func (f *Follower) Progress() []PartitionProgress { return f.progress.all() }

// ProgressOf returns the position in one partition, zero if it is not read.
func (f *Follower) ProgressOf(topic string, partition int32) PartitionProgress {
	return f.progress.of(topic, partition)
}

// Ready returns nil if brokers answer and the last batch was handled, else an error
// with the reason.
func (f *Follower) Ready() error {
	reason := f.state.get()
	if outage := f.link.outage(); outage != "" {
		reason = outage
	}
	if reason != "" {
		return fmt.Errorf("following %s: %s", f.cfg.Group, reason)
	}
	return nil
}

// Run reads until the context ends, and then returns nil. It returns early only with
// an error of [pipeline.ClassFatal] or one that wraps ErrOffsetGone. It may be called
// again after it has returned.
func (f *Follower) Run(ctx context.Context) error {
	defer f.cfg.Metrics.follows(f.cfg.Group, &f.progress)()
	for wait := minBackoff; ctx.Err() == nil; {
		handled, err := f.runClient(ctx)
		err = trimDial(err)
		switch {
		case ctx.Err() != nil:
			return nil
		case pipeline.ClassOf(err) == pipeline.ClassFatal || errors.Is(err, ErrOffsetGone):
			f.state.set(err.Error())
			return err
		case handled:
			wait = minBackoff
		}
		f.state.set(err.Error())
		f.cfg.Logger.Warn("following failed; retrying", "group", f.cfg.Group, "err", err, "wait", wait.String())
		wait = sleep(ctx, wait)
	}
	return nil
}

// runClient runs one client until the context ends or an error occurs. It reports
// whether any batch was handled.
func (f *Follower) runClient(ctx context.Context) (handled bool, err error) {
	opts, err := f.cfg.Client.Options()
	if err != nil {
		return false, &pipeline.FatalError{Err: err}
	}
	fetch := int32(min(f.cfg.Memory/8, 64<<20))
	cl, err := kgo.NewClient(append(opts,
		kgo.WithHooks(f.link),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // see session.fetchOptions
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.MetadataMinAge(250*time.Millisecond),
		kgo.FetchMaxWait(fetchWait),
		kgo.MaxConcurrentFetches(2),
		kgo.FetchMaxBytes(fetch),
		kgo.FetchMaxPartitionBytes(min(fetch, 1<<20)),
		kgo.WithPools(pool.New(f.cfg.Memory/2)),
	)...)
	if err != nil {
		return false, &pipeline.FatalError{Err: err}
	}
	defer cl.Close()
	defer f.progress.watchEndsWith(ctx, cl)()
	reads := map[topicPartition]int{} // followedAt.added, by partition that the client reads
	for {
		poll, cancel := context.WithCancel(ctx)
		f.align(cl, reads, cancel)
		fetches := cl.PollRecords(poll, maxPoll)
		err := f.pollErrors(poll, fetches)
		if err == nil && fetches.NumRecords() > 0 {
			if err = f.batch(ctx, poll, cl, fetches); err == nil {
				handled = true
				f.state.set("")
			}
		}
		cancel()
		if err != nil || ctx.Err() != nil {
			return handled, err
		}
	}
}

// align makes the client read exactly the partitions in f.at. It stores interrupt,
// which Add and Remove call. reads is the client's current set and is updated.
func (f *Follower) align(cl *kgo.Client, reads map[topicPartition]int, interrupt func()) {
	f.mu.Lock()
	f.interrupt = interrupt
	at := maps.Clone(f.at)
	f.mu.Unlock()
	add, remove := map[string]map[int32]kgo.Offset{}, map[string][]int32{}
	for tp, added := range reads {
		if at[tp].added != added {
			remove[tp.topic] = append(remove[tp.topic], tp.partition)
			delete(reads, tp)
		}
	}
	for tp, a := range at {
		if _, ok := reads[tp]; ok {
			continue
		}
		if add[tp.topic] == nil {
			add[tp.topic] = map[int32]kgo.Offset{}
		}
		add[tp.topic][tp.partition] = kgo.NewOffset().At(a.next)
		reads[tp] = a.added
	}
	if len(remove) > 0 {
		cl.RemoveConsumePartitions(remove)
	}
	if len(add) > 0 {
		cl.AddConsumePartitions(add)
	}
	if len(at) == 0 {
		f.state.set("") // without partitions nothing can fail
	}
}

// pollErrors returns the errors of a poll, with ErrOffsetGone where it applies.
func (f *Follower) pollErrors(ctx context.Context, fetches kgo.Fetches) error {
	err := pollErrors(ctx, fetches)
	var loss *kgo.ErrDataLoss
	if errors.Is(err, kerr.OffsetOutOfRange) || errors.As(err, &loss) {
		return fmt.Errorf("%w: %w", ErrOffsetGone, err)
	}
	return err
}

// batch handles the fetched records and polls for more until its interval has passed
// or the poll context ends.
func (f *Follower) batch(ctx, poll context.Context, cl *kgo.Client, fetches kgo.Fetches) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	deadline := time.Now().Add(f.cfg.Interval)
	b := followBatch{Follower: f}
	var err error
	for {
		if err = b.handle(ctx, fetches); err != nil || b.bytes >= f.cfg.Memory/8 || poll.Err() != nil || !time.Now().Before(deadline) {
			break
		}
		more, cancel := context.WithDeadline(poll, deadline)
		fetches = cl.PollRecords(more, maxPoll)
		err = f.pollErrors(more, fetches)
		cancel()
		if err != nil {
			break
		}
	}
	// End the batch also after an error: the records before it were handled.
	if ended := f.cfg.Handler.EndBatch(ctx); ended != nil {
		return errors.Join(err, ended)
	}
	for tp, read := range b.read {
		f.progress.committed(tp, read)
	}
	for _, fetches := range b.fetched {
		fetches.EachRecord((*kgo.Record).Recycle)
	}
	return err
}

// followBatch is the records between two calls of EndBatch.
type followBatch struct {
	*Follower
	in      pipeline.Record
	bytes   int
	read    map[topicPartition]readTo
	fetched []kgo.Fetches // to recycle
}

func (b *followBatch) handle(ctx context.Context, fetches kgo.Fetches) (err error) {
	b.fetched = append(b.fetched, fetches)
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if err == nil {
			err = b.partition(ctx, &p)
		}
	})
	return err
}

func (b *followBatch) partition(ctx context.Context, p *kgo.FetchTopicPartition) (err error) {
	tp := topicPartition{p.Topic, p.Partition}
	b.mu.Lock()
	at, ok := b.at[tp]
	b.mu.Unlock()
	if !ok || len(p.Records) == 0 {
		return nil // the partition was removed since the fetch, or the fetch is empty
	}
	before, last := at.next, b.read[tp].time
	for _, r := range p.Records {
		if r.Offset < at.next {
			continue
		}
		if !r.Attrs.IsControl() {
			setRecord(&b.in, p.Topic, p.Partition, r)
			if err = b.cfg.Handler.Handle(ctx, &b.in); err != nil {
				err = fmt.Errorf("%s offset %d: %w", tp, r.Offset, err)
				break
			}
			b.bytes += len(r.Key) + len(r.Value)
			last = readTime(r.Timestamp)
		}
		at.next = r.Offset + 1
	}
	if at.next == before {
		return err
	}
	if b.read == nil {
		b.read = map[topicPartition]readTo{}
	}
	b.read[tp] = readTo{next: at.next, end: p.LastStableOffset, time: last}
	b.mu.Lock()
	if now, ok := b.at[tp]; ok && now.added == at.added {
		b.at[tp] = at
	}
	b.mu.Unlock()
	return err
}
