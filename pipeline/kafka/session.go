package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// The rules of this file, each with its test in loop_test.go, or in held_test.go:
//
//  1. A batch commits only if the handler took every record without an error
//     and every produced record was acknowledged. The client's transaction
//     session does not look at produce errors when it ends a transaction: it
//     would commit the input's offsets although an output is missing. So we
//     count emitted against acknowledged, and anything else aborts.
//  2. The client commits everything it polled. So nothing is polled between
//     the last record handled and the end of the transaction; while a session
//     commits, the process's other sessions work.
//  3. Not committed without an error is normal when the group moves on: the
//     client did not ask for the commit, and we go on polling. But it says the
//     same when the broker answered the commit with an error after which it
//     could only try to abort, so that the commit may have happened. It then asks
//     for its producer id anew, which nothing else does while a transaction ends:
//     that tells the two apart. See rule 4, which also ends what the group
//     refuses again and again.
//  4. After any error from ending a transaction its outcome is unknown and is
//     not guessed: the client is thrown away, and a new one under the same
//     transactional id fences and aborts what may be open, then reads the
//     committed offsets.
//  5. The context that stops the loop never reaches the call that ends a
//     transaction: cancelling that would leave the outcome unknown.
//  6. Offsets go with every transaction, and never go back: see held.go.
//
// A client's batches have the size that topics took when it was made. So when one
// is too large for its topic, and that takes something else by now, the client is
// thrown away after the batch has been rolled back, see tooLarge.

// A poll brings at most maxPoll records, which bounds how far a batch can run past
// its limit of time. Past its limit of bytes it runs by what is not foreseen: the
// first poll of a session is small, those that follow go by the size of records.
const (
	firstPoll = 64
	maxPoll   = 4096
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// session is one member of the group, with its own client and transactional id.
// Its fields belong to the goroutine of run; what the group's callbacks touch
// is marked.
type session struct {
	loop   *Loop
	number int
	txnID  string
	log    *slog.Logger
	state  state // also set by the group's callbacks
	link   *link

	refused int // batches in a row that the group did not take

	limits  Limits // what topics took when they were last asked
	handler pipeline.Handler
	alarm   alarm // anybody may ring
	held    held  // also set by the group's callbacks

	// revoked is set by the group's callbacks: the batch at hand cannot commit,
	// so it had better end.
	revoked atomic.Bool
	// client is for the requests of the callbacks, who set it.
	client atomic.Pointer[kgo.Client]
	// doomed holds an error that a callback found and that ends the loop.
	doomed atomic.Pointer[error]
}

// run keeps a client alive until the context ends. A panic, other than in a
// stage, is a fault of this program: its stack goes to the log, and the loop
// ends, for nobody knows what state it left.
func (s *session) run(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic", "value", p, "stack", string(debug.Stack()))
			err = pipeline.Fatal("panic: %v", p)
			s.state.set(err.Error())
		}
	}()
	h, err := s.loop.cfg.NewHandler(s.number)
	if err != nil {
		return &pipeline.FatalError{Err: err}
	}
	s.handler = h
	if w, ok := h.(Waker); ok {
		w.OnWake(s.alarm.ring)
	}
	wait := minBackoff
	for ctx.Err() == nil {
		committed, err := s.live(ctx)
		if err == nil {
			continue
		}
		if pipeline.ClassOf(err) == pipeline.ClassFatal {
			s.state.set(err.Error())
			return err
		}
		if ctx.Err() != nil {
			s.log.Warn("stopped without committing the last batch; it comes again after the next start", "err", err)
			return nil
		}
		if committed {
			wait = minBackoff
		}
		s.state.set(err.Error())
		s.log.Warn("session failed; starting it anew", "err", err, "wait", wait)
		wait = sleep(ctx, wait)
	}
	return nil
}

// sleep waits and returns how long to wait the next time.
func sleep(ctx context.Context, d time.Duration) time.Duration {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
	return min(2*d, maxBackoff)
}

// live runs one client until the context ends (nil) or the client has to be
// thrown away (an error). It reports whether any batch committed.
func (s *session) live(ctx context.Context) (anyCommitted bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cl, err := s.connect(ctx, cancel)
	if err != nil {
		return false, err
	}
	defer cl.close()

	wait := minBackoff
	spare := newBatch(cl)
	for {
		b, err := s.collect(ctx, cl, spare)
		if doom := s.doomed.Load(); doom != nil {
			s.discard(cl, b)
			return anyCommitted, *doom
		}
		if b == nil {
			if err != nil || ctx.Err() != nil {
				return anyCommitted, err
			}
			cl.allowRebalance()
			continue
		}
		if err == nil {
			err = s.acknowledged(b)
		}
		committed, endErr := s.end(cl, b, err == nil)
		cl.allowRebalance()
		if endErr != nil {
			return anyCommitted, s.fenced(b, errors.Join(err, endErr))
		}
		if committed {
			anyCommitted, wait = true, minBackoff
			s.state.set("")
		}
		if err != nil {
			if pipeline.ClassOf(err) == pipeline.ClassFatal {
				return anyCommitted, err
			}
			if isFenced(err) {
				return anyCommitted, s.fenced(b, err)
			}
			if errors.Is(err, kerr.MessageTooLarge) {
				var anew bool
				if anew, err = s.tooLarge(ctx, err); anew {
					return anyCommitted, err
				}
			}
			s.state.set(err.Error())
			s.log.Warn("batch rolled back; trying again", "err", err, "wait", wait)
			wait = sleep(ctx, wait)
		}
		if ctx.Err() != nil {
			return anyCommitted, nil
		}
	}
}

// connect builds the client. stop ends the session from within a callback.
func (s *session) connect(ctx context.Context, stop func()) (client, error) {
	cfg := &s.loop.cfg
	opts, err := cfg.Client.Options()
	if err != nil {
		return nil, &pipeline.FatalError{Err: err}
	}
	opts = append(opts,
		kgo.WithHooks(s.link, groupErrors{s}),
		kgo.ConsumerGroup(cfg.Group),
		kgo.ConsumeTopics(cfg.Topics...),
		kgo.SessionTimeout(cfg.SessionTimeout),
		// How long a rebalance waits for a member: a batch that takes longer than
		// this cannot commit anyway.
		kgo.RebalanceTimeout(cfg.TransactionTimeout),
		kgo.HeartbeatInterval(min(time.Second, cfg.SessionTimeout/3)), // how soon a member learns of a rebalance
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Markers take offsets. Seeing them lets a position, and the group's
		// committed offset, reach the end of a topic: no lag of 1 for ever.
		kgo.KeepControlRecords(),
		kgo.DisableAutoCommit(),
		// A new group starts at the beginning; an offset that is out of range
		// later is an error and never a silent jump.
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// After a moved leader or coordinator, look again soon.
		kgo.MetadataMinAge(250*time.Millisecond),
		kgo.FetchMaxWait(fetchWait),
		kgo.MaxConcurrentFetches(2),
		kgo.FetchMaxBytes(cfg.fetchBytes()),
		kgo.FetchMaxPartitionBytes(min(cfg.fetchBytes(), 1<<20)),
		kgo.WithPools(newFetchPool(cfg.unpackedBytes())),
		kgo.AdjustFetchOffsetsFn(func(ctx context.Context, at map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			return s.assign(ctx, stop, at)
		}),
		kgo.OnPartitionsAssigned(func(_ context.Context, cl *kgo.Client, ps map[string][]int32) {
			s.client.Store(cl)
			cfg.Metrics.rebalanced(cfg.Group, "assigned", count(ps))
			s.log.Info("partitions assigned", "partitions", ps)
			s.state.set("")
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) { s.revoke("revoked", ps) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) { s.revoke("lost", ps) }),
	)
	var limits Limits // for good; the client asks for the first time when something is written
	opts = append(opts, producerOptions(cfg.bufferedBytes(), func(topic string) int { return limits.batch(topic) })...)
	if cfg.Protocol == ConsumerProtocol {
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	} else {
		opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	if cfg.Static {
		opts = append(opts, kgo.InstanceID(s.txnID))
	}
	s.state.set("joining the group")
	s.revoked.Store(false)
	s.held.forget()
	if cfg.Guarantee == AtLeastOnce {
		cl, err := kgo.NewClient(append(opts, kgo.BlockRebalanceOnPoll())...)
		if err != nil {
			return nil, &pipeline.FatalError{Err: err}
		}
		if err := s.loop.checkBrokers(ctx, cl); err != nil {
			closeClient(cl)
			return nil, err
		}
		limits = s.limit(ctx, cl)
		return &groupClient{Client: cl}, nil
	}
	t, err := kgo.NewGroupTransactSession(append(opts,
		kgo.TransactionalID(s.txnID),
		kgo.TransactionTimeout(cfg.TransactionTimeout),
	)...)
	if err != nil {
		return nil, &pipeline.FatalError{Err: err}
	}
	// Take over the transactional id now, not with the first record: this
	// fences who had it before and aborts what it left open. Until that is
	// done, the group's offsets cannot be read, so a restarted worker would
	// wait for the old transaction's timeout before it has anything to write.
	init, cancelInit := context.WithTimeout(ctx, cfg.TransactionTimeout)
	defer cancelInit()
	if err := s.loop.checkBrokers(init, t.Client()); err != nil {
		closeClient(t.Client())
		return nil, err
	}
	if _, _, err := t.Client().ProducerID(init); err != nil {
		closeClient(t.Client())
		return nil, fmt.Errorf("taking over the transactional id %s: %w", s.txnID, err)
	}
	limits = s.limit(ctx, t.Client())
	return &txnClient{GroupTransactSession: t, offsets: s.held.offsets}, nil
}

// limitsUnread is what the log says when the default has to do.
const limitsUnread = "what topics take cannot be read, so their records are held to the default: allow DescribeConfigs on them"

// limit finds out how large batches may be, and tells the handler. That it cannot
// be read keeps nobody from working.
func (s *session) limit(ctx context.Context, cl *kgo.Client) Limits {
	limits, err := s.askLimits(ctx, cl)
	if err != nil && s.number == 0 { // the others would say the same
		s.log.Warn(limitsUnread, "bytes", Limits(nil).Record(""), "err", err)
	}
	s.log.Debug("what topics take", "bytes", limits)
	s.limits = limits
	if h, ok := s.handler.(Limited); ok {
		h.Limit(limits)
	}
	return limits
}

// askLimits asks what the topics take. Of one that does not say, it is what it was.
func (s *session) askLimits(ctx context.Context, cl *kgo.Client) (Limits, error) {
	limits, err := askLimits(ctx, cl, s.loop.cfg.Writes, s.loop.cfg.bufferedBytes())
	for topic, n := range s.limits {
		if _, ok := limits[topic]; !ok {
			limits[topic] = n
		}
	}
	return limits, err
}

// tooLarge is for a batch of which something was too large for its topic. It asks
// again what the topics take. If that is news, a new client makes its batches by it.
// If not, nothing is mended by that, and the group is spared; the error says what
// would help.
func (s *session) tooLarge(ctx context.Context, err error) (anew bool, _ error) {
	limits, unread := s.askLimits(ctx, s.client.Load())
	switch {
	case !maps.Equal(limits, s.limits):
		return true, fmt.Errorf("%w; what the topics take has changed", err)
	case unread != nil:
		return false, fmt.Errorf("%w; what it takes cannot be read, so give it a max.message.bytes of %d or more, or allow DescribeConfigs on it (%w)", err, defaultBatch, unread)
	}
	return false, fmt.Errorf("%w; raise the topic's max.message.bytes", err)
}

// groupErrors hears why the group does not let a session in.
type groupErrors struct{ *session }

var _ kgo.HookGroupManageError = groupErrors{}

// OnGroupManageError is called before the group is joined anew.
func (g groupErrors) OnGroupManageError(err error) {
	g.state.set("joining the group anew: " + err.Error())
}

// assign is called by the group between joining and reading.
func (s *session) assign(ctx context.Context, stop func(), at map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	var topics []string
	for topic := range at {
		topics = append(topics, topic)
	}
	adm := kadm.NewClient(s.client.Load())
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("reading where the partitions start: %w", err)
	}
	ends, err := adm.ListCommittedOffsets(ctx, topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("reading where the partitions end: %w", err)
	}
	var ps []Partition
	for topic, offsets := range at {
		for partition, offset := range offsets {
			start, _ := starts.Lookup(topic, partition)
			end, _ := ends.Lookup(topic, partition)
			p := Partition{Topic: topic, Partition: partition, Committed: offset.EpochOffset().Offset, Start: start.Offset, End: end.Offset}
			if p.Committed < 0 {
				p.Committed = -1
			} else if p.Committed < p.Start {
				return nil, s.doom(stop, "%s: the group %s has read up to offset %d, but the topic now starts at %d: retention deleted %d offsets unread. Reset the group's offset on purpose, after making good what is missing",
					topicPartition{topic, partition}, s.loop.cfg.Group, p.Committed, p.Start, p.Start-p.Committed)
			}
			ps = append(ps, p)
		}
	}
	from := make([]int64, len(ps))
	for i, p := range ps {
		from[i] = max(p.Committed, p.Start)
	}
	if a, ok := s.handler.(Assigner); ok {
		if from, err = a.Assign(ctx, ps); err != nil {
			if pipeline.ClassOf(err) == pipeline.ClassFatal {
				return nil, s.doom(stop, "%w", err)
			}
			s.state.set(err.Error())
			return nil, err
		}
	}
	for i, p := range ps {
		s.held.assigned(p, from[i])
		if from[i] != p.Committed {
			// An offset of its own also where nothing is committed yet: the
			// client then has a place to go back to when a batch aborts.
			at[p.Topic][p.Partition] = kgo.NewOffset().At(from[i])
		}
		s.loop.progress.set(PartitionProgress{Topic: p.Topic, Partition: p.Partition, Position: from[i], End: p.End}, time.Time{})
	}
	return at, nil
}

// doom ends the loop from within a callback.
func (s *session) doom(stop func(), format string, args ...any) error {
	err := pipeline.Fatal(format, args...)
	s.doomed.Store(&err)
	stop()
	return err
}

func (s *session) revoke(kind string, ps map[string][]int32) {
	if len(ps) == 0 {
		return
	}
	s.revoked.Store(true)
	if kind == "lost" {
		s.state.set("lost its partitions; joining the group anew")
	}
	s.loop.cfg.Metrics.rebalanced(s.loop.cfg.Group, kind, -count(ps))
	s.log.Info("partitions "+kind, "partitions", ps)
	var list []Partition
	for topic, partitions := range ps {
		for _, p := range partitions {
			list = append(list, Partition{Topic: topic, Partition: p})
			s.loop.progress.drop(topicPartition{topic, p})
			s.held.revoked(topicPartition{topic, p})
		}
	}
	if a, ok := s.handler.(Assigner); ok {
		a.Revoke(list)
	}
}

func count(ps map[string][]int32) (n int) {
	for _, p := range ps {
		n += len(p)
	}
	return n
}

// collect polls and handles records until the batch is due. It returns nil if
// there was nothing to handle, and the handler did not ask to be flushed all the
// same. With an error, the batch must not commit.
func (s *session) collect(ctx context.Context, cl client, b *batch) (*batch, error) {
	cfg := &s.loop.cfg
	first, off := s.alarm.set(ctx)
	fetches, err := poll(first, cl, min(cfg.MaxPoll, b.room(cfg.batchBytes())))
	rung := off() && ctx.Err() == nil
	if err != nil || fetches.NumRecords() == 0 && !rung {
		return nil, err
	}
	if err := cl.begin(); err != nil {
		return nil, fmt.Errorf("beginning a transaction: %w", err)
	}
	b.begin()

	// The handler may go on for a while after ctx has ended, so that a stop
	// finishes the batch instead of throwing it away.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		t := time.AfterFunc(cfg.Drain, cancel)
		context.AfterFunc(work, func() { t.Stop() })
	})()

	deadline := b.began.Add(cfg.CommitInterval)
	for none := fetches.NumRecords() == 0; !none; {
		if err := b.handle(work, s.handler, fetches); err != nil {
			return b, err
		}
		if b.bytes >= cfg.batchBytes() || s.revoked.Load() || ctx.Err() != nil || !time.Now().Before(deadline) {
			break
		}
		more, cancel := context.WithDeadline(ctx, deadline)
		fetches, err = poll(more, cl, min(cfg.MaxPoll, b.room(cfg.batchBytes()-b.bytes)))
		cancel()
		if err != nil {
			return b, err
		}
		if b.failed() != nil {
			break
		}
	}
	if err := s.handler.Flush(work, b); err != nil {
		return b, err
	}
	return b, work.Err()
}

// poll returns the next records, or none when the context ends first.
func poll(ctx context.Context, cl client, most int) (kgo.Fetches, error) {
	fetches := cl.poll(ctx, most)
	return fetches, faults(ctx, fetches)
}

// faults returns what went wrong in a poll with the context.
func faults(ctx context.Context, fetches kgo.Fetches) error {
	var errs []error
	fetches.EachError(func(topic string, partition int32, err error) {
		var loss *kgo.ErrDataLoss
		switch {
		case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		case errors.Is(err, kerr.OffsetOutOfRange), errors.As(err, &loss):
			errs = append(errs, pipeline.Fatal("%s: the offset to read next does not exist: %w. The topic was truncated, recreated, or retention deleted what was unread. Reset the group's offset on purpose, after making good what is missing",
				topicPartition{topic, partition}, err))
		case topic == "":
			errs = append(errs, err)
		default:
			errs = append(errs, fmt.Errorf("reading %s: %w", topicPartition{topic, partition}, err))
		}
	})
	return errors.Join(errs...)
}

// acknowledged waits for the fate of what the batch emitted.
func (s *session) acknowledged(b *batch) error {
	ctx, cancel := s.endContext()
	defer cancel()
	return b.acknowledged(ctx)
}

// endContext is the deadline of everything that ends a transaction. It has
// nothing to do with the loop's context: see rule 5.
func (s *session) endContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), s.loop.cfg.TransactionTimeout)
}

// end ends the batch. committed = false without an error is normal: the group
// took partitions away, or commit is false.
func (s *session) end(cl client, b *batch, commit bool) (committed bool, err error) {
	cfg := &s.loop.cfg
	ctx, cancel := s.endContext()
	defer cancel()
	inits := s.link.inits.Load()
	revoked := s.revoked.Load() // the client knew of it before, and will abort
	committed, err = cl.end(ctx, commit)
	s.revoked.Store(false)
	switch {
	case err == nil && !b.settled():
		err = errors.New("the fate of some written records is not known") // the client promises otherwise
	case err == nil && committed:
		s.refused = 0
	case err == nil && commit && !revoked:
		s.refused++
		if s.link.inits.Load() != inits || s.refused > s.patience() {
			s.refused = 0
			err = errUnconfirmed
		}
	}
	result := "aborted"
	if err != nil {
		result, committed = "failed", false
		err = fmt.Errorf("ending the transaction: %w", err)
		cl.close() // before the handler may reuse the bytes of the batch
	} else if committed {
		result = "committed"
		for tp, at := range b.read {
			s.loop.progress.set(PartitionProgress{Topic: tp.topic, Partition: tp.partition, Position: at.next, End: at.end}, at.time)
			s.held.committed(tp, at.next)
		}
	}
	s.handler.EndBatch(committed)
	cfg.Metrics.ended(cfg.Group, result, b.records, time.Since(b.began), b.written)
	if err == nil {
		b.release()
	}
	return committed, err
}

// patience is how many batches in a row the group may refuse before the client is
// thrown away. A member by KIP-848 that the broker refuses does not find back by
// itself.
func (s *session) patience() int {
	if s.loop.cfg.Protocol == ConsumerProtocol {
		return 0
	}
	return 3
}

// errUnconfirmed: a commit was asked for, and it may be that the broker committed
// and failed to say so.
var errUnconfirmed = errors.New("the client could not confirm the commit")

// discard gives up the batch with the client.
func (s *session) discard(cl client, b *batch) {
	cl.close()
	if b != nil {
		s.handler.EndBatch(false)
	}
}

// fenced turns an error that says another client has taken over our
// transactional id into a fatal one: two processes under one id would fence
// each other for ever. A transaction that ran into its timeout looks the same,
// so one that is old enough for that is only an abort.
func (s *session) fenced(b *batch, err error) error {
	if isFenced(err) && time.Since(b.began) < s.loop.cfg.TransactionTimeout {
		return pipeline.Fatal("%w: another process uses the transactional id %s. Give each worker its own --instance name: %w", ErrFenced, s.txnID, err)
	}
	return err
}

// ErrFenced is in the chain of the error with which [Loop.Run] ends when
// another process has taken over a transactional id.
var ErrFenced = errors.New("fenced")

func isFenced(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch)
}
