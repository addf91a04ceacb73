package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/kafka/pool"
)

// Rules of this file. Each has a test in loop_test.go or held_test.go.
//
//  1. A batch commits only if the handler took every record without an error
//     and every produced record was acknowledged. The transaction session of the
//     client does not check produce errors when it ends a transaction: it would
//     commit the input offsets although an output is missing. So the batch counts
//     emitted and acknowledged records, and any difference aborts.
//  2. The client commits every record it polled. So nothing is polled between the
//     last handled record and the end of the transaction. The other sessions of
//     the process keep working while one session commits.
//  3. "Not committed" without an error is normal after a rebalance: the client did
//     not request the commit, and the session continues to poll. But the client
//     returns the same when the broker answered the commit with an error after
//     which the client could only try to abort; that commit may have happened. In
//     this case the client requests its producer id again, and nothing else does
//     so while a transaction ends. The session counts these requests to tell the
//     two cases apart. Rule 4 applies to the second case, and also after the group
//     has refused several batches in a row.
//  4. After any error from ending a transaction, its outcome is unknown and the
//     session does not guess it. It discards the client. A new client under the
//     same transactional id fences the old one, aborts any open transaction, and
//     then reads the committed offsets.
//  5. The context that stops the loop never reaches the call that ends a
//     transaction: canceling that call would leave the outcome unknown.
//  6. Offsets are committed with every transaction and never move back: see held.go.
//
// The batch size limits of a client are fixed when it is created. If a topic refuses a
// batch and the topic's limits have changed since, the session rolls the batch back and
// discards the client: see refusal.go.

// A poll returns at most maxPoll records. This bounds how far a batch can exceed
// its time limit. It can exceed its byte limit only by records larger than
// expected: the first poll of a session is small, and later polls are sized by the
// average record size so far.
const (
	firstPoll = 64
	maxPoll   = 4096
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// session is one member of the group, with its own client and transactional id.
// The goroutine of run owns its fields, except those marked as shared with the
// group callbacks, which the client calls from its own goroutines.
type session struct {
	loop   *Loop
	number int
	txnID  string
	log    *slog.Logger
	state  state // also set by the group callbacks; has its own lock
	link   *link // has its own lock; hooks of the client write it

	refused    int  // batches in a row that the group refused
	timeoutSet bool // setSessionTimeout has been called

	limits  Limits // topic limits when the current client was created
	handler pipeline.Handler
	alarm   alarm  // any goroutine may ring it; has its own lock
	held    held   // also set by the group callbacks; has its own lock
	pauses  pauses // has its own lock
	suspect suspect

	// revoked is set by the group callbacks: the current batch cannot commit any
	// more, so it ends now.
	revoked atomic.Bool
	// joined is set by a group callback: the current client has been a member of the group.
	joined atomic.Bool
	// client is set by a group callback, for the requests of callbacks and of refusedBatch.
	client atomic.Pointer[kgo.Client]
	// fatal is an error found by a callback. It ends the loop.
	fatal atomic.Pointer[error]
}

// run keeps a client running until the context ends. stopped ends only if the loop is
// stopped. A panic that is not in a stage is a bug of this program: run logs the stack and
// ends the loop, because the state after it is unknown.
func (s *session) run(ctx, stopped context.Context) (err error) {
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
	unreleased := false // whether UNRELEASED_INSTANCE_ID was reported
	for ctx.Err() == nil {
		committed, err := s.runClient(ctx, stopped)
		if err == nil {
			continue
		}
		err = s.removed(trimDial(err))
		if pipeline.ClassOf(err) == pipeline.ClassFatal {
			s.state.set(err.Error())
			return err
		}
		if ctx.Err() != nil {
			s.log.Warn("stopped without committing the last batch; it is read again after the next start", "err", err)
			return nil
		}
		if committed {
			wait, unreleased = minBackoff, false
		}
		s.state.set(err.Error())
		level := slog.LevelWarn
		if errors.Is(err, kerr.UnreleasedInstanceID) {
			// The same again until the group removes the predecessor: once is enough.
			if unreleased {
				level = slog.LevelDebug
			}
			unreleased = true
		}
		s.log.Log(ctx, level, "session failed; starting a new client", "err", err, "wait", wait.String())
		wait = sleep(ctx, wait)
	}
	return nil
}

// sleep waits for d or until ctx ends. It returns the next backoff.
func sleep(ctx context.Context, d time.Duration) time.Duration {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
	return min(2*d, maxBackoff)
}

// runClient runs one client until the context ends (nil) or the client must be
// discarded (an error). It reports whether any batch committed.
func (s *session) runClient(ctx, stopped context.Context) (anyCommitted bool, err error) {
	leave := s.leaver(stopped)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cl, err := s.connect(ctx, cancel, leave)
	if err != nil {
		return false, err
	}
	defer func() {
		cl.close()
		s.revokeRest()
	}()

	wait := minBackoff
	spare := newBatch(cl)
	spare.suspect = &s.suspect
	for {
		b, err := s.collect(ctx, cl, spare)
		if fatal := s.fatal.Load(); fatal != nil {
			s.discard(cl, b)
			return anyCommitted, *fatal
		}
		if b == nil {
			if err != nil || ctx.Err() != nil {
				return anyCommitted, s.replaced(err)
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
			s.suspect.passed(b.last())
			s.state.set("")
		}
		if errors.Is(err, ErrPaused) {
			s.log.Info("batch rolled back: a partition waits", "why", err)
			continue
		}
		if err != nil {
			if pipeline.ClassOf(err) == pipeline.ClassFatal {
				return anyCommitted, err
			}
			if isFenced(err) {
				return anyCommitted, s.fenced(b, err)
			}
			if IsRefusal(err) {
				var next reaction
				next, err = s.refusedBatch(ctx, b, err)
				switch next {
				case newClient:
					return anyCommitted, err
				case search:
					s.log.Warn("batch rolled back; trying again with fewer records, to find the one that is refused", "err", err, "records", b.records)
					continue
				}
			}
			s.suspect.wait(b.fewer)
			s.state.set(err.Error())
			s.log.Warn("batch rolled back; trying again", "err", err, "wait", wait.String())
			wait = sleep(ctx, wait)
		}
		if ctx.Err() != nil {
			return anyCommitted, nil
		}
	}
}

// connect creates the client and waits until brokers answer it. stop ends the
// session from within a callback. leave leaves the group when the client is closed.
func (s *session) connect(ctx context.Context, stop func(), leave leaver) (client, error) {
	// Local, so the limits of this client never change. They are set below, before
	// anything is produced: the client reads them at the first record of a partition.
	var limits Limits
	opts, err := s.options(stop, func(topic string) int { return limits.batch(topic) })
	if err != nil {
		return nil, &pipeline.FatalError{Err: err}
	}
	s.state.set("joining the group")
	s.revoked.Store(false)
	s.joined.Store(false)
	s.held.reset()
	if s.loop.cfg.Guarantee == AtLeastOnce {
		cl, err := kgo.NewClient(append(opts, kgo.ConsumeTopics(s.loop.cfg.Topics...), kgo.BlockRebalanceOnPoll())...)
		if err != nil {
			return nil, &pipeline.FatalError{Err: err}
		}
		if err := s.loop.checkBrokers(ctx, cl); err != nil {
			closeClient(cl, nil)
			return nil, err
		}
		s.setSessionTimeout(ctx, cl)
		limits = s.loadLimits(ctx, cl)
		return &groupClient{Client: cl, leave: leave, mark: s.loop.cfg.mark}, nil
	}
	t, err := s.newTransactSession(ctx, opts)
	if err != nil {
		return nil, err
	}
	limits = s.loadLimits(ctx, t.Client())
	return &txnClient{GroupTransactSession: t, leave: leave, fixOffsets: func(req *kmsg.TxnOffsetCommitRequest) error { return s.held.fixOffsets(req, s.loop.cfg.mark) }}, nil
}

// newTransactSession creates a client for transactions that owns the session's
// transactional id.
func (s *session) newTransactSession(ctx context.Context, opts []kgo.Opt) (*kgo.GroupTransactSession, error) {
	timeout := s.loop.cfg.TransactionTimeout
	t, err := kgo.NewGroupTransactSession(append(opts,
		kgo.TransactionalID(s.txnID),
		kgo.TransactionTimeout(timeout),
	)...)
	if err != nil {
		return nil, &pipeline.FatalError{Err: err}
	}
	// Take over the transactional id now, not with the first record: this fences
	// the previous owner and aborts its open transaction. The group's offsets
	// cannot be read before that, so a restarted worker without records to write
	// would wait until the old transaction times out.
	init, cancelInit := context.WithTimeout(ctx, timeout)
	defer cancelInit()
	if err := s.loop.checkBrokers(init, t.Client()); err != nil {
		closeClient(t.Client(), nil)
		return nil, err
	}
	if _, _, err := t.Client().ProducerID(init); err != nil {
		closeClient(t.Client(), nil)
		return nil, fmt.Errorf("taking over the transactional id %s: %w", s.txnID, err)
	}
	s.removePredecessor(init, t.Client())
	s.setSessionTimeout(init, t.Client())
	t.Client().AddConsumeTopics(s.loop.cfg.Topics...) // joins the group
	return t, nil
}

// options returns the client options for both guarantees. stop ends the session
// from within a callback; batchLimit returns the largest batch of a topic, in bytes.
func (s *session) options(stop func(), batchLimit func(topic string) int) ([]kgo.Opt, error) {
	cfg := &s.loop.cfg
	opts, err := cfg.Client.Options()
	if err != nil {
		return nil, err
	}
	opts = append(opts, kgo.WithHooks(s.link, groupErrors{s}))
	opts = append(opts, s.groupOptions(stop)...)
	opts = append(opts, s.fetchOptions()...)
	return append(opts, producerOptions(cfg.Client.Partitioners, cfg.bufferedBytes(), batchLimit)...), nil
}

// groupOptions returns the options for membership and committed offsets.
func (s *session) groupOptions(stop func()) []kgo.Opt {
	cfg := &s.loop.cfg
	opts := []kgo.Opt{
		kgo.ConsumerGroup(cfg.Group),
		kgo.SessionTimeout(cfg.SessionTimeout),
		// How long a rebalance waits for a member. A batch that takes longer cannot
		// commit anyway.
		kgo.RebalanceTimeout(cfg.TransactionTimeout),
		kgo.HeartbeatInterval(min(time.Second, cfg.SessionTimeout/3)), // how soon a member learns of a rebalance
		kgo.DisableAutoCommit(),
		// A new group starts at the beginning. Later, an offset out of range is an
		// error and never a silent jump.
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.AdjustFetchOffsetsFn(func(ctx context.Context, at map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			return s.assign(ctx, stop, at)
		}),
		kgo.OnPartitionsAssigned(func(_ context.Context, cl *kgo.Client, ps map[string][]int32) {
			s.client.Store(cl)
			s.joined.Store(true)
			s.revokeMissed(cl)
			cfg.Metrics.rebalanced(cfg.Group, "assigned")
			s.log.Info("partitions assigned", "partitions", ps)
			if len(ps) > 0 {
				s.state.set("opening its partitions") // until the end of assign
			} else {
				s.state.set("")
			}
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) { s.revoke("revoked", ps) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) { s.revoke("lost", ps) }),
	}
	switch {
	case cfg.Protocol == ConsumerProtocol:
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	case cfg.Guarantee == ExactlyOnce && !cfg.Static:
		opts = append(opts, kgo.Balancers(markedBalancer{kgo.CooperativeStickyBalancer(), memberMark(s.txnID)}))
	default:
		opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	if cfg.Static {
		opts = append(opts, kgo.InstanceID(s.txnID))
	}
	return opts
}

// fetchOptions returns the options for reading records.
func (s *session) fetchOptions() []kgo.Opt {
	cfg := &s.loop.cfg
	return []kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Transaction markers take offsets. With the markers in the fetches, a
		// position and the group's committed offset can reach the end of a topic;
		// without them a lag of 1 would remain forever.
		kgo.KeepControlRecords(),
		kgo.MetadataMinAge(250 * time.Millisecond), // refresh soon after a leader or coordinator moved
		kgo.FetchMaxWait(fetchWait),
		kgo.MaxConcurrentFetches(2),
		kgo.FetchMaxBytes(cfg.fetchBytes()),
		kgo.FetchMaxPartitionBytes(min(cfg.fetchBytes(), 1<<20)),
		kgo.WithPools(pool.New(cfg.unpackedBytes())),
	}
}

// groupErrors records why the group does not accept a session.
type groupErrors struct{ *session }

var _ kgo.HookGroupManageError = groupErrors{}

// OnGroupManageError is called before the client joins the group again.
func (g groupErrors) OnGroupManageError(err error) {
	g.state.set("joining the group again: " + err.Error())
}

// assign is a group callback between joining and reading. It returns the offsets
// to read from.
func (s *session) assign(ctx context.Context, stop func(), at map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	var topics []string
	for topic := range at {
		topics = append(topics, topic)
	}
	if err := s.checkTopics(ctx); err != nil {
		if pipeline.ClassOf(err) == pipeline.ClassFatal {
			return nil, s.endLoop(stop, "%w", err)
		}
		return nil, err
	}
	adm := kadm.NewClient(s.client.Load())
	foreign, err := s.foreign(ctx, adm, topics)
	if err != nil {
		return nil, err
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the start offsets of the partitions: %w", err)
	}
	ends, err := adm.ListCommittedOffsets(ctx, topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the end offsets of the partitions: %w", err)
	}
	var ps []Partition
	for topic, offsets := range at {
		for partition, offset := range offsets {
			start, _ := starts.Lookup(topic, partition)
			end, _ := ends.Lookup(topic, partition)
			p := Partition{Topic: topic, Partition: partition, Committed: offset.EpochOffset().Offset, Start: start.Offset, End: end.Offset}
			if p.Committed < 0 || foreign[topicPartition{topic, partition}] {
				p.Committed = -1
			} else if p.Committed < p.Start {
				if err := s.unread(p); err != nil {
					return nil, s.endLoop(stop, "%w", err)
				}
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
				return nil, s.endLoop(stop, "%w", err)
			}
			s.state.set(err.Error())
			return nil, err
		}
	}
	for i, p := range ps {
		s.loop.cfg.Metrics.hold(s.loop.cfg.Group, s.held.assigned(p, from[i]))
		if from[i] != p.Committed {
			// Set the offset even if nothing is committed yet: the client
			// returns to it when a batch aborts.
			at[p.Topic][p.Partition] = kgo.NewOffset().At(from[i])
		}
		now := PartitionProgress{Topic: p.Topic, Partition: p.Partition, Position: from[i], End: p.End}
		if r, ok := s.handler.(Rereader); ok {
			now.Done = min(p.Committed, r.Handled(p.Topic, p.Partition))
		}
		s.loop.progress.assigned(now)
	}
	s.pauses.apply(s)
	s.state.set("")
	return at, nil
}

// unread reports the offsets that retention deleted before the group read them. With
// AcceptLoss the loop continues at the start of the log.
func (s *session) unread(p Partition) error {
	tp, n := topicPartition{p.Topic, p.Partition}, p.Start-p.Committed
	if !s.loop.cfg.AcceptLoss {
		return pipeline.Fatal("%s: the group %s has read up to offset %d, but the topic now starts at %d: retention deleted %d offsets unread; recover the missing records, or continue without them with --accept-loss",
			tp, s.loop.cfg.Group, p.Committed, p.Start, n)
	}
	s.log.Warn("retention deleted offsets unread; continuing at the start of the log", "partition", tp.String(), "committed", p.Committed, "log_start", p.Start, "offsets", n)
	s.loop.cfg.Metrics.lost(s.loop.cfg.Group, p.Topic, n)
	// Commit soon, even if no record arrives: otherwise the next start finds the same gap.
	s.alarm.ring()
	return nil
}

// endLoop ends the loop with a fatal error from within a callback.
func (s *session) endLoop(stop func(), format string, args ...any) error {
	err := pipeline.Fatal(format, args...)
	s.fatal.Store(&err)
	stop()
	return err
}

// revoke is a group callback. kind is "revoked" or "lost".
func (s *session) revoke(kind string, ps map[string][]int32) {
	if len(ps) == 0 {
		return
	}
	s.revoked.Store(true)
	if s.loop.cfg.Guarantee == ExactlyOnce {
		// The client's transaction session does not call back for the next revocation
		// before the end of a transaction. An idle session ends one now.
		s.alarm.ring()
	}
	if kind == "lost" {
		s.state.set("lost its partitions; joining the group again")
	}
	s.loop.cfg.Metrics.rebalanced(s.loop.cfg.Group, kind)
	s.log.Info("partitions "+kind, "partitions", ps)
	var list []Partition
	held := 0
	for topic, partitions := range ps {
		for _, p := range partitions {
			list = append(list, Partition{Topic: topic, Partition: p})
			s.loop.progress.drop(topicPartition{topic, p})
			held += s.held.revoked(topicPartition{topic, p})
		}
	}
	s.loop.cfg.Metrics.hold(s.loop.cfg.Group, -held)
	if a, ok := s.handler.(Assigner); ok {
		a.Revoke(list)
	}
}

// revokeMissed revokes the partitions that the client no longer has, at the begin of a
// group session: two revocations may come in the same transaction, see revoke.
//
// The client has offsets of each partition that it reads or has read. A partition whose
// offset was not read yet is revoked, too: the client calls assign for it again.
func (s *session) revokeMissed(cl *kgo.Client) {
	s.revoke("revoked", s.held.except(cl.CommittedOffsets()))
}

// revokeRest revokes all partitions of a client that is closed: it may not have called back.
func (s *session) revokeRest() { s.revoke("lost", s.held.except(nil)) }

// collect polls and handles records until the batch is due. It returns a nil batch
// if there are no records and the handler did not request a flush. If it returns
// an error, the batch must not commit.
func (s *session) collect(ctx context.Context, cl client, b *batch) (*batch, error) {
	cfg := &s.loop.cfg
	first, off := s.alarm.watch(ctx)
	s.pauses.apply(s)
	fetches, err := poll(first, cl, s.suspect.poll(min(cfg.MaxPoll, b.pollSize(cfg.batchBytes()))))
	woken := off() && ctx.Err() == nil
	if err != nil || fetches.NumRecords() == 0 && !woken {
		return nil, err
	}
	if err := cl.begin(); err != nil {
		return nil, fmt.Errorf("beginning a transaction: %w", err)
	}
	b.begin()

	// The handler may continue for the drain time after ctx has ended, so a stop
	// finishes the batch instead of aborting it.
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
		if b.bytes >= cfg.batchBytes() || s.suspect.isolating() || s.revoked.Load() || ctx.Err() != nil || !time.Now().Before(deadline) {
			break
		}
		more, cancel := context.WithDeadline(ctx, deadline)
		fetches, err = poll(more, cl, min(cfg.MaxPoll, b.pollSize(cfg.batchBytes()-b.bytes)))
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

// poll returns the next records, or none if the context ends first.
func poll(ctx context.Context, cl client, most int) (kgo.Fetches, error) {
	fetches := cl.poll(ctx, most)
	return fetches, pollErrors(ctx, fetches)
}

// pollErrors returns the errors of a poll, without those caused by the end of its
// context.
func pollErrors(ctx context.Context, fetches kgo.Fetches) error {
	var errs []error
	fetches.EachError(func(topic string, partition int32, err error) {
		var loss *kgo.ErrDataLoss
		switch {
		case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		case errors.Is(err, kerr.OffsetOutOfRange), errors.As(err, &loss):
			errs = append(errs, pipeline.Fatal("%s: the offset to read next does not exist: %w; the topic was truncated or recreated, or retention deleted unread records; recover the missing records, then reset the group's offset",
				topicPartition{topic, partition}, err))
		case topic == "":
			errs = append(errs, err)
		default:
			errs = append(errs, fmt.Errorf("reading %s: %w", topicPartition{topic, partition}, err))
		}
	})
	return errors.Join(errs...)
}

// acknowledged waits until every emitted record is acknowledged or has failed.
func (s *session) acknowledged(b *batch) error {
	ctx, cancel := s.endContext()
	defer cancel()
	return b.acknowledged(ctx)
}

// endContext returns the context, with a deadline, for all calls that end a
// transaction. It is independent of the loop's context: see rule 5.
func (s *session) endContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), s.loop.cfg.TransactionTimeout)
}

// end commits or aborts the batch. committed = false without an error is normal:
// the group revoked partitions, or commit is false.
func (s *session) end(cl client, b *batch, commit bool) (committed bool, err error) {
	cfg := &s.loop.cfg
	ctx, cancel := s.endContext()
	defer cancel()
	inits := s.link.inits.Load()
	revoked := s.revoked.Load() // if set, the client knows of the revocation and will abort
	committed, err = cl.end(ctx, commit)
	s.revoked.Store(false)
	switch {
	case err == nil && !b.settled():
		err = errUnsettled // the client promises that this does not happen
	case err == nil && committed:
		s.refused = 0
	case err == nil && commit && !revoked:
		s.refused++
		if s.link.inits.Load() != inits || s.refused > maxRefusals {
			s.refused = 0
			err = errUnconfirmed
		}
	}
	result := "aborted"
	if err != nil {
		result, committed = "failed", false
		err = fmt.Errorf("ending the transaction: %w", err)
		cl.close() // before EndBatch, after which the handler may reuse the bytes of the batch
	} else if committed {
		result = "committed"
		for tp, at := range b.read {
			s.loop.progress.committed(tp, at)
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

// maxRefusals is how many batches in a row the group may refuse before the session discards
// its client. A rebalance costs some: the client aborts a batch when the heartbeat that it
// sends before a commit reports one. A client that is discarded for that would start the
// next rebalance.
const maxRefusals = 3

// errUnconfirmed means that a commit was requested, and that the broker may have
// committed without confirming it.
var errUnconfirmed = errors.New("the client could not confirm the commit")

// discard closes the client and drops the batch, which may be nil.
func (s *session) discard(cl client, b *batch) {
	cl.close()
	if b != nil {
		s.handler.EndBatch(false)
	}
}

// fenced makes an error fatal if it means that another client has taken over our
// transactional id: two processes under one id would fence each other forever. A
// transaction timeout returns the same error, so if the batch is older than the
// timeout, the error is only an abort.
func (s *session) fenced(b *batch, err error) error {
	if isFenced(err) && time.Since(b.began) < s.loop.cfg.TransactionTimeout {
		return pipeline.Fatal("%w: another process uses the transactional id %s; give each worker its own --instance name: %w", ErrFenced, s.txnID, err)
	}
	return err
}

// replaced makes an error fatal if it means that another client has taken over the instance
// id of our static membership: two processes under one id would replace each other forever.
// A group of the consumer protocol answers the same to a successor whose predecessor has
// not left, which has not been a member.
func (s *session) replaced(err error) error {
	if errors.Is(err, kerr.FencedInstanceID) || errors.Is(err, kerr.UnreleasedInstanceID) && s.joined.Load() {
		return pipeline.Fatal("%w: another process uses the instance id %s; give each worker its own --instance name: %w", ErrFenced, s.txnID, err)
	}
	return err
}

// ErrFenced is in the chain of the error with which [Loop.Run] ends when
// another process has taken over a transactional id.
var ErrFenced = errors.New("fenced")

func isFenced(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.FencedInstanceID)
}
