package projection

import (
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyformat"
)

// Home returns the partition to which an aggregate, or a window of one, belongs. sure is
// false if the id does not tell: then it is a partition that is the same on every worker.
func (p *Projection) Home(id string) (partition int32, sure bool) {
	f, n := p.Spec.Fold, p.Spec.Events.Partitions
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
