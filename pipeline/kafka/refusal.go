package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// A broker refuses a whole batch of a partition because of one record that its topic does
// not accept, and the client then fails all records of the partition that it has not
// written yet. The handlers check records before they emit them (see [Gate]), so this
// happens only if the configuration of a topic has changed, if it cannot be read, or if
// the broker has rules of its own.
//
// The session then reads the limits again. If they are unchanged, it looks for the input
// record whose output is refused: it halves the size of its batches until a batch of one
// record is refused twice. The handler gives this record up ([Refuser]), and the batches
// grow again. Nothing is guessed: a record is given up only if it is refused alone.

// A Refuser is a [pipeline.Handler] that can give up a record whose output Kafka refuses.
type Refuser interface {
	// Refuse is called instead of Handle, for a record whose output was refused with why.
	// It emits a dead letter whose own time is the current one: the broker may have refused
	// the time of the record.
	Refuse(ctx context.Context, in *pipeline.Record, why error, out pipeline.Emitter) error
}

// IsRefusal reports whether a broker refused a record for its content, so the same record
// is refused again.
func IsRefusal(err error) bool {
	for _, refused := range []error{kerr.InvalidTimestamp, kerr.InvalidRecord, kerr.MessageTooLarge, kerr.RecordListTooLarge} {
		if errors.Is(err, refused) {
			return true
		}
	}
	return false
}

// suspect is the search of a session for a refused record. The session's goroutine owns it.
type suspect struct {
	most    int                // records of a batch; 0: no search
	alone   recordAt           // the record that was refused alone, once
	refused map[recordAt]error // records to give up, with the answer of the broker
	waited  int                // batches that committed while refused was not empty
}

// recordAt is the place of a record.
type recordAt struct {
	topicPartition
	offset int64
}

// poll returns how many records to poll, of n.
func (s *suspect) poll(n int) int {
	if s.most > 0 {
		return min(n, s.most)
	}
	return n
}

// isolating reports whether a batch ends after its first poll.
func (s *suspect) isolating() bool { return s.most > 0 }

// narrow continues the search after a batch of n records was refused. last is the place of
// the last one. It returns false if the dead letter of this record was refused, too.
func (s *suspect) narrow(n int, last recordAt, why error) bool {
	s.most = max(1, n/2)
	switch {
	case n > 1:
	case s.refused[last] != nil:
		return false
	case s.alone != last:
		s.alone = last
	default:
		if s.refused == nil {
			s.refused = map[recordAt]error{}
		}
		s.refused[last] = why
	}
	return true
}

// wait makes the next batches small enough to commit the records before one that cannot be
// handled at the moment: n records could be handled, 0 if it is unknown. So those do not
// wait for it, and the lag shows its place.
func (s *suspect) wait(n int) {
	if n > 0 && (s.most == 0 || n < s.most) {
		s.most = n
	}
}

// passed widens the batches after a commit, unless a record is still to be given up: it
// may come after records of other partitions. last is the place of the last record.
func (s *suspect) passed(last recordAt) {
	if s.most == 0 {
		return
	}
	delete(s.refused, last)
	if len(s.refused) > 0 {
		if s.waited++; s.waited < maxPoll {
			return
		}
		clear(s.refused) // its partition was revoked
	}
	s.waited = 0
	if s.most *= 2; s.most >= maxPoll {
		*s = suspect{}
	}
}

// reaction is what follows a refused batch.
type reaction uint8

const (
	backOff   reaction = iota // try again later
	search                    // try again now, with fewer records
	newClient                 // make a new client, and tell the handler the new limits
)

// refusedBatch handles a batch that a broker refused. If the limits of the topics have
// changed, a new client makes its batches by the new limits. If not, a new client would
// not help and would only cost the group a rebalance.
func (s *session) refusedBatch(ctx context.Context, b *batch, err error) (reaction, error) {
	limits, unread := s.fetchLimits(ctx, s.client.Load())
	if !maps.Equal(limits, s.limits) {
		return newClient, fmt.Errorf("%w; the configuration of the topic has changed", err)
	}
	if _, ok := s.handler.(Refuser); !ok || b.records == 0 {
		return backOff, refusalRemedy(err, unread)
	}
	if !s.suspect.narrow(b.records, b.last(), err) {
		return backOff, fmt.Errorf("the dead letter was refused, too: %w", refusalRemedy(err, unread))
	}
	return search, err
}

// refusalRemedy adds the remedy to the error of a refused batch. unread is the error of
// reading the limits of topics.
func refusalRemedy(err, unread error) error {
	switch {
	case errors.Is(err, kerr.MessageTooLarge) && unread != nil:
		return fmt.Errorf("%w; the topic's size limit cannot be read, so set its max.message.bytes to %d or more, or allow DescribeConfigs on it (%w)", err, defaultBatch, unread)
	case errors.Is(err, kerr.MessageTooLarge):
		return fmt.Errorf("%w; raise the topic's max.message.bytes", err)
	case errors.Is(err, kerr.InvalidTimestamp):
		return fmt.Errorf("%w; raise the topic's message.timestamp.after.max.ms and message.timestamp.before.max.ms", err)
	}
	return fmt.Errorf("%w; check the topic's cleanup.policy: a compacted topic takes no record without a key", err)
}

// limitsUnread is the log message when the default limit applies.
const limitsUnread = "cannot read the size limits of topics, so the default limit applies: allow DescribeConfigs on them"

// loadLimits reads what the topics accept and passes it to the handler. If the
// limits cannot be read, the defaults apply and work continues.
func (s *session) loadLimits(ctx context.Context, cl *kgo.Client) Limits {
	limits, err := s.fetchLimits(ctx, cl)
	if err != nil && s.number == 0 { // the other sessions get the same answer
		s.log.Warn(limitsUnread, "bytes", Limits(nil).MaxRecord(""), "err", err)
	}
	s.log.Debug("limits of topics", "limits", limits)
	s.limits = limits
	if h, ok := s.handler.(SizeLimited); ok {
		h.SetLimits(limits)
	}
	return limits
}

// fetchLimits reads the limits of the topics. A topic without an answer keeps its
// previous limit.
func (s *session) fetchLimits(ctx context.Context, cl *kgo.Client) (Limits, error) {
	limits, err := fetchLimits(ctx, cl, s.loop.cfg.Writes, s.loop.cfg.bufferedBytes())
	for topic, n := range s.limits {
		if _, ok := limits[topic]; !ok {
			limits[topic] = n
		}
	}
	return limits, err
}
