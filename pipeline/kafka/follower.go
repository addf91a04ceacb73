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
)

// A FollowHandler takes what a [Follower] reads. It has nowhere to write to. No two
// calls overlap.
type FollowHandler interface {
	// Handle takes a record, whose bytes are valid until EndBatch. After an error
	// the record comes again.
	Handle(ctx context.Context, in *pipeline.Record) error
	// EndBatch is called after every few records, and after an error of Handle.
	EndBatch(ctx context.Context) error
}

// FollowerConfig configures a [Follower]. Handler is required; what is zero gets
// the default named beside it.
type FollowerConfig struct {
	Client  Config
	Handler FollowHandler

	// Group labels the metrics: whose events are followed. The Follower is in none.
	Group    string
	Memory   int           // about how many bytes it may hold of records; 64 MiB
	Interval time.Duration // how long a batch collects records; 100 ms

	Metrics *Metrics // none
	Logger  *slog.Logger
}

// A Follower reads the committed records of single partitions, and on as records
// come, without a group: it commits nothing and writes nothing. Partitions come and
// go while it runs.
type Follower struct {
	cfg      FollowerConfig
	progress progress
	state    state
	link     *link

	// turn is held during a batch: who has it knows that the handler is at rest.
	turn sync.Mutex

	mu        sync.Mutex // guards what follows
	at        map[topicPartition]followedAt
	added     int    // how often a partition was
	interrupt func() // ends the poll at hand, as what is to be read has changed
}

// followedAt is where a partition is read.
type followedAt struct {
	next  int64
	added int // tells it from the same partition, removed and added again
}

// ErrOffsetGone is in the chain of the error with which [Follower.Run] ends when the
// next record of a partition is not there any more, and so whoever follows it has to
// begin somewhere else.
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
	def(&cfg.Interval, 100*time.Millisecond)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Follower{cfg: cfg, link: newLink(), at: map[topicPartition]followedAt{}, interrupt: func() {}}
	cfg.Metrics.follows(cfg.Group, &f.progress)
	return f, nil
}

// Add makes it read a partition, from an offset on. end is where the committed
// records of the partition end, as far as is known.
func (f *Follower) Add(topic string, partition int32, from, end int64) {
	tp := topicPartition{topic, partition}
	f.progress.set(PartitionProgress{Topic: topic, Partition: partition, Position: from, End: end}, time.Time{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.added++
	f.at[tp] = followedAt{from, f.added}
	f.interrupt()
}

// Remove makes it read a partition no longer. When it returns, the handler has ended
// the batch in which the partition's last record was.
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

// Progress returns where it stands in each of its partitions.
func (f *Follower) Progress() []PartitionProgress { return f.progress.all() }

// Ready returns nil when brokers answer and the last batch was handled, else the
// reason why not, in words.
func (f *Follower) Ready() error {
	why := f.state.get()
	if silent := f.link.why(); silent != "" {
		why = silent
	}
	if why != "" {
		return fmt.Errorf("following %s: %s", f.cfg.Group, why)
	}
	return nil
}

// Run reads until the context ends, and returns nil then. It returns early with an
// error of [pipeline.ClassFatal] or one that wraps ErrOffsetGone, and may be called
// again.
func (f *Follower) Run(ctx context.Context) error {
	for wait := minBackoff; ctx.Err() == nil; {
		handled, err := f.live(ctx)
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
		f.cfg.Logger.Warn("following failed; trying again", "group", f.cfg.Group, "err", err, "wait", wait)
		wait = sleep(ctx, wait)
	}
	return nil
}

// live runs one client until the context ends or something fails. It reports whether
// any batch was handled.
func (f *Follower) live(ctx context.Context) (handled bool, err error) {
	opts, err := f.cfg.Client.Options()
	if err != nil {
		return false, &pipeline.FatalError{Err: err}
	}
	fetch := int32(min(f.cfg.Memory/8, 64<<20))
	cl, err := kgo.NewClient(append(opts,
		kgo.WithHooks(f.link),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // see session.connect
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.MetadataMinAge(250*time.Millisecond),
		kgo.FetchMaxWait(fetchWait),
		kgo.MaxConcurrentFetches(2),
		kgo.FetchMaxBytes(fetch),
		kgo.FetchMaxPartitionBytes(min(fetch, 1<<20)),
		kgo.WithPools(newFetchPool(f.cfg.Memory/2)),
	)...)
	if err != nil {
		return false, &pipeline.FatalError{Err: err}
	}
	defer cl.Close()
	reads := map[topicPartition]int{} // when added, by partition that the client reads
	for {
		poll, cancel := context.WithCancel(ctx)
		f.align(cl, reads, cancel)
		fetches := cl.PollRecords(poll, maxPoll)
		err := f.faults(poll, fetches)
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

// align makes the client read what is to be read. interrupt is called when that
// changes.
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
		f.state.set("") // there is nothing to fail
	}
}

// faults returns what went wrong in a poll.
func (f *Follower) faults(ctx context.Context, fetches kgo.Fetches) error {
	err := faults(ctx, fetches)
	var loss *kgo.ErrDataLoss
	if errors.Is(err, kerr.OffsetOutOfRange) || errors.As(err, &loss) {
		return fmt.Errorf("%w: %w", ErrOffsetGone, err)
	}
	return err
}

// batch handles records, those that were fetched and more until its time is over or
// poll ends.
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
		err = f.faults(more, fetches)
		cancel()
		if err != nil {
			break
		}
	}
	// What was handled is, whatever came after.
	if ended := f.cfg.Handler.EndBatch(ctx); ended != nil {
		return errors.Join(err, ended)
	}
	for tp, read := range b.read {
		f.progress.set(PartitionProgress{Topic: tp.topic, Partition: tp.partition, Position: read.next, End: read.end}, read.time)
	}
	for _, fetches := range b.fetched {
		fetches.EachRecord((*kgo.Record).Recycle)
	}
	return err
}

// followBatch is what is handled between two ends of a batch.
type followBatch struct {
	*Follower
	in      pipeline.Record
	bytes   int
	read    map[topicPartition]readTo
	fetched []kgo.Fetches // to be given back
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
		return nil // it was removed meanwhile
	}
	before, last := at.next, time.Time{}
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
		}
		at.next, last = r.Offset+1, r.Timestamp
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
