package internalrecord

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"millrace/pipeline"
)

// One transaction writes snapshots and internal records to two topics, but it does not
// become visible on both at once, and an owner publishes while another worker reads. So
// each snapshot has the name of its transaction in a header, and the checkpoint of the
// transaction has the name, too: see [ReadCut].

// transactionHeader is the header of a snapshot with the name of its transaction.
const transactionHeader = "millrace.transaction"

// TombstoneHeader marks the snapshot of an aggregate that a tombstone deleted: another event
// creates it again. Readers of states need not know.
const TombstoneHeader = "millrace.tombstone"

// Transaction is the transaction of an owner of a partition that is open, or the last one.
// The zero value is before the first one. Nothing changes the slices.
type Transaction struct {
	Name       string            // no other transaction has it; "" if internal records are on the snapshots topic
	Headers    []pipeline.Header // of snapshots
	Tombstones []pipeline.Header // of snapshots of aggregates that a tombstone deleted

	owner string
	count int
}

// Next begins another transaction. named says that internal records are on a topic of their
// own.
func (t *Transaction) Next(named bool) {
	t.Tombstones = []pipeline.Header{{Key: TombstoneHeader, Value: []byte("true")}}
	if !named {
		return
	}
	if t.owner == "" {
		t.owner = rand.Text()
	}
	t.count++
	t.Name = fmt.Sprintf("%s-%d", t.owner, t.count)
	t.Headers = []pipeline.Header{{Key: transactionHeader, Value: []byte(t.Name)}}
	t.Tombstones = append(t.Tombstones, t.Headers...)
}

// Topics are the topics that owners of a partition publish on.
type Topics struct{ Internal, Snapshots string }

// Ends are offsets in the same partition of [Topics].
type Ends struct{ Internal, Snapshots int64 }

// ReadFunc calls f with each record of a topic from an offset to the high watermark at the
// time of the call, or later, and returns the offset after the last one. It waits for open
// transactions.
type ReadFunc func(ctx context.Context, topic string, from int64, f func(*pipeline.Record) error) (end int64, err error)

// errCut ends a read at the checkpoint that was searched.
var errCut = errors.New("the checkpoint is found")

// ReadCut reads a partition of both topics as of the end of one transaction. It returns the
// offsets up to which it has read them. It calls internal and snapshots with the records of
// their topics.
//
// The internal records are read first, so the snapshots are not older. They may be newer:
// then the internal records are read on, up to the checkpoint of the transaction with the
// last snapshot, and the snapshots again, for the rest of that transaction.
//
// Transactions are sequential, and the last snapshot was not replaced by a later one. So
// everything of earlier transactions was read, and nothing of later ones.
func ReadCut(ctx context.Context, read ReadFunc, topics Topics, internal, snapshots func(*pipeline.Record) error) (at Ends, err error) {
	var known, last string
	if at.Internal, err = read(ctx, topics.Internal, 0, func(in *pipeline.Record) error {
		if c, ok := checkpointIn(in); ok {
			known = c.Transaction
		}
		return internal(in)
	}); err != nil {
		return at, err
	}
	if at.Snapshots, err = read(ctx, topics.Snapshots, 0, func(in *pipeline.Record) error {
		if name, ok := in.Header(transactionHeader); ok {
			last = string(name)
		}
		return snapshots(in)
	}); err != nil || last == "" || last == known {
		return at, err
	}
	var later []pipeline.Record
	_, err = read(ctx, topics.Internal, at.Internal, func(in *pipeline.Record) error {
		later = append(later, in.Clone())
		if c, ok := checkpointIn(in); ok && c.Transaction == last {
			return errCut
		}
		return nil
	})
	if !errors.Is(err, errCut) {
		return at, err // the last snapshot is older than the checkpoint
	}
	for i := range later {
		if err := internal(&later[i]); err != nil {
			return at, err
		}
	}
	at.Internal = later[len(later)-1].Offset + 1
	_, err = read(ctx, topics.Snapshots, at.Snapshots, func(in *pipeline.Record) error {
		if name, _ := in.Header(transactionHeader); string(name) != last {
			return nil
		}
		return snapshots(in)
	})
	return at, err
}

// checkpointIn returns the checkpoint that a record has.
func checkpointIn(in *pipeline.Record) (c Checkpoint, ok bool) {
	if kind, _ := KindOf(in.Key); kind != OfCheckpoint {
		return c, false
	}
	c, err := DecodeCheckpoint(in.Value)
	return c, err == nil
}
