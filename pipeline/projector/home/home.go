// Package home tells in which partition the events of an aggregate belong.
package home

import (
	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyformat"
)

// Of returns the partition of n to which an aggregate, or a window of one, belongs. sure is
// false if the id does not tell: then it is a partition that is the same on every worker.
func Of(f *fold.Fold, id string, n int) (partition int32, sure bool) {
	key := f.AggregateKey(id)
	if n <= 1 {
		return 0, true
	}
	if f.AnyPartition() || f.Keys().Kind == keyformat.Avro {
		// The schema id in an Avro key is not part of the id.
		return kafka.PartitionOf(key, n), false
	}
	record, err := f.Keys().AppendKey(nil, key)
	if err != nil {
		return kafka.PartitionOf(key, n), false
	}
	return kafka.PartitionBy(f.Partitioner(), record, n), true
}

// Mispartitioned is the reason code of an event that is not in the partition of its
// aggregate.
const Mispartitioned pipeline.Reason = "mispartitioned"

// Check rejects an event that is not in the partition of its aggregate. If it were folded,
// the aggregate would have a second state, beside the one in the right partition.
//
// That is the partition of the record key that the aggregate has: the key of the event's
// record if its text form is the id. key is nil if the keys are text. The memory of scratch
// is reused.
func Check(f *fold.Fold, id []byte, key *keyformat.Key, topic kafka.TopicInfo, partition int32, scratch *[]byte) error {
	if f.AnyPartition() || topic.Partitions <= 1 {
		return nil
	}
	record := id
	if key != nil {
		var err error
		if record, err = key.AppendLike((*scratch)[:0], id); err != nil { // the id tells what is wrong
			return pipeline.Reject(Mispartitioned, "%q is not the text form of a key in %s, the key_format of %s, so the event was written under another key. Rekey the events in a pipeline, or set partitioner: other if all events of an aggregate are in one partition anyway",
				id, f.Keys(), topic.Name)
		}
		*scratch = record
	}
	home := kafka.PartitionBy(f.Partitioner(), record, topic.Partitions)
	if home == partition {
		return nil
	}
	return pipeline.Reject(Mispartitioned, "%q belongs in partition %d of %s, and this event is in %d: it was written under another key or by another partitioner. Rekey the events in a pipeline, or set partitioner: other if all events of an aggregate are in one partition anyway",
		id, home, topic.Name, partition)
}
