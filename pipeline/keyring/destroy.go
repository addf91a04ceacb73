package keyring

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/seal"
)

// DestroyKeys marks a subject as forgotten and replaces each of its keys by a null.
// All records of the subject are in the given partition of the key topic, which
// read reads to its end. It returns the number of destroyed keys. It may be called
// again, after an error and after success.
//
// The mark is written first. A process that creates a key for the subject at the
// same time reads its key back: if the mark is before the key, the reader finds the
// mark; if the key is before the mark, read finds the key here.
func DestroyKeys(ctx context.Context, out RecordWriter, topic string, partition int32, subject string, now time.Time, read func(func(*pipeline.Record) error) error) (destroyed int, err error) {
	write := func(records ...seal.Record) error {
		results := NewResults(len(records))
		for _, r := range records {
			out.Write(ctx, &pipeline.Record{Topic: topic, Partition: partition, Key: r.Key, Value: r.Value, Time: now}, results.Add)
		}
		return results.Wait(ctx)
	}
	mark, err := seal.NewErasure(subject, now)
	if err == nil {
		err = write(mark)
	}
	if err != nil {
		return 0, fmt.Errorf("marking subject %q as forgotten on %s: %w; the mark may be missing: run the command again", subject, topic, err)
	}
	keys, err := keysOf(subject, read)
	if err == nil {
		err = write(keys...)
	}
	if err != nil {
		return 0, fmt.Errorf("subject %q is marked as forgotten on %s and its data is hidden, but its key may still exist: %w; run the command again", subject, topic, err)
	}
	return len(keys), nil
}

// CountKeys returns the number of a subject's keys that are not destroyed. read is as for
// [DestroyKeys].
func CountKeys(subject string, read func(func(*pipeline.Record) error) error) (int, error) {
	keys, err := keysOf(subject, read)
	return len(keys), err
}

// keysOf returns the nulls that delete the keys of a subject, without the keys that
// are deleted already.
func keysOf(subject string, read func(func(*pipeline.Record) error) error) (nulls []seal.Record, err error) {
	exists := map[string]bool{} // by record key
	err = read(func(r *pipeline.Record) error {
		if of, isKey, err := seal.ParseRecordKey(r.Key); err == nil && isKey && of == subject {
			exists[string(r.Key)] = r.Value != nil
		}
		return nil
	})
	for _, key := range slices.Sorted(maps.Keys(exists)) {
		if exists[key] {
			nulls = append(nulls, seal.Record{Key: []byte(key)})
		}
	}
	return nulls, err
}
