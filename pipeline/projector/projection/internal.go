package projection

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"millrace/pipeline"
	"millrace/pipeline/projector/internalrecord"
)

// Internal records are on a topic of their own (Spec.Internal), so every value on the
// snapshots topic is a snapshot. Versions that an earlier release made have them on the
// snapshots topic, for their life.
//
// One transaction writes to both topics, but it does not become visible on both at once,
// and an owner publishes while a follower restores. A checkpoint and snapshots that were
// simply read one after the other may be of different times. So each snapshot has the name
// of its transaction in a header, and the checkpoint of the transaction has the name, too:
// see opening.readLayout.

// internal returns the topic of the internal records.
func (s *Spec) internal() string {
	if s.Internal == "" {
		return s.Snapshots
	}
	return s.Internal
}

// transactionHeader is the header of a snapshot with the name of its transaction.
const transactionHeader = "millrace.transaction"

// transaction names a transaction of a lane.
type transaction struct {
	name      string
	lane      string            // makes the names of the lane's transactions unique
	count     int               // of the lane's transactions
	headers   []pipeline.Header // of snapshots; nothing changes the slices
	tombstone []pipeline.Header // of snapshots of aggregates that a tombstone deleted
}

// next begins another transaction. Only internal records on a topic of their own need the
// name.
func (t *transaction) next(spec *Spec) {
	t.tombstone = tombstoneHeader
	if spec.Internal == "" {
		return
	}
	if t.lane == "" {
		t.lane = rand.Text()
	}
	t.count++
	t.name = fmt.Sprintf("%s-%d", t.lane, t.count)
	h := pipeline.Header{Key: transactionHeader, Value: []byte(t.name)}
	t.headers, t.tombstone = []pipeline.Header{h}, []pipeline.Header{tombstoneHeader[0], h}
}

// transactionOf returns the name of the transaction of a snapshot, "" if it has none.
func transactionOf(in *pipeline.Record) string {
	value, _ := in.Header(transactionHeader)
	return string(value)
}

// errCut ends a read at the checkpoint that was searched.
var errCut = errors.New("the checkpoint is found")

// readEnds are the offsets up to which the topics of a projection were read.
type readEnds struct {
	internal, snapshots int64
}

// readLayout reads the snapshots and the internal records of a partition as of the end of
// one transaction. The internal records are read first, so the snapshots are not older.
// They may be newer: then the internal records are read on, up to the checkpoint of the
// transaction with the last snapshot, and the snapshots again, for the rest of that
// transaction.
//
// Transactions are sequential, and the last snapshot was not replaced by a later one. So
// everything of earlier transactions was read, and nothing of later ones.
func (o *opening) readLayout(ctx context.Context, r *loader) (at readEnds, err error) {
	spec := &o.projection.Spec
	if spec.Internal == "" {
		at.internal, err = o.set.cfg.Restore(ctx, spec.Snapshots, o.at.Partition, r.take)
		return at, err
	}
	read := func(topic string, from int64, f func(*pipeline.Record) error) (int64, error) {
		return o.set.cfg.Settled(ctx, topic, o.at.Partition, from, f)
	}
	if at.internal, err = read(spec.Internal, 0, r.takeInternal); err != nil {
		return at, err
	}
	var last string
	if at.snapshots, err = read(spec.Snapshots, 0, func(in *pipeline.Record) error {
		if name := transactionOf(in); name != "" {
			last = name
		}
		return r.takeSnapshots(in)
	}); err != nil || last == "" || last == r.found.from.Transaction {
		return at, err
	}
	var later []pipeline.Record
	_, err = read(spec.Internal, at.internal, func(in *pipeline.Record) error {
		later = append(later, copied(in))
		if kind, _ := internalrecord.KindOf(in.Key); kind != internalrecord.OfCheckpoint {
			return nil
		}
		if c, err := internalrecord.DecodeCheckpoint(in.Value); err != nil || c.Transaction != last {
			return nil
		}
		return errCut
	})
	if !errors.Is(err, errCut) {
		return at, err // the last snapshot is older than the checkpoint
	}
	for i := range later {
		if err := r.takeInternal(&later[i]); err != nil {
			return at, err
		}
	}
	at.internal = later[len(later)-1].Offset + 1
	_, err = read(spec.Snapshots, at.snapshots, func(in *pipeline.Record) error {
		if transactionOf(in) != last {
			return nil
		}
		return r.takeSnapshots(in)
	})
	return at, err
}

// takeInternal takes a record of the topic of internal records. Its errors are those of the
// store.
func (r *loader) takeInternal(in *pipeline.Record) error {
	if kind, _ := internalrecord.KindOf(in.Key); kind == internalrecord.Other {
		r.lane.skipUnreadable(in, errForeign, effectForeign)
		return nil
	}
	return r.take(in)
}

// takeSnapshots takes a record of a snapshots topic without internal records. Its errors
// are those of the store.
func (r *loader) takeSnapshots(in *pipeline.Record) error {
	if kind, _ := internalrecord.KindOf(in.Key); kind != internalrecord.Other {
		r.lane.skipUnreadable(in, errForeign, effectForeign)
		return nil
	}
	return r.take(in)
}

var errForeign = errors.New("its key belongs on another topic of the projection")

// effectForeign is the effect of a record that belongs on another topic, for the log.
const effectForeign = "it is skipped: another program wrote it"

// readPublished reads the internal records of the lane's partition, and whatever else is
// on their topic.
func (o *opening) readPublished(ctx context.Context, f func(*pipeline.Record) error) (err error) {
	if spec := &o.projection.Spec; spec.Internal == "" {
		_, err = o.set.cfg.Restore(ctx, spec.Snapshots, o.at.Partition, f)
	} else {
		_, err = o.set.cfg.Settled(ctx, spec.Internal, o.at.Partition, 0, f)
	}
	return err
}
