package control

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// Topic returns the name of a topology's control topic.
func Topic(t *topology.Topology) string { return t.Name + "-control" }

// TopicSpec returns the required properties of the control topic.
func TopicSpec(name string) kafka.TopicSpec {
	return kafka.TopicSpec{Name: name, Partitions: 1, Config: map[string]string{"cleanup.policy": "compact"}}
}

// ReadState returns the content of the control topic. It is empty if the topic does not exist.
func ReadState(ctx context.Context, cfg kafka.Config, topic string) (*State, error) {
	cluster, err := kafka.Describe(ctx, cfg, []string{topic}, nil, nil)
	if err != nil {
		return nil, err
	}
	if err := cluster.Hidden[topic]; err != nil {
		return nil, fmt.Errorf("control topic %s: %w", topic, err)
	}
	s := newState()
	if _, ok := cluster.Topics[topic]; !ok {
		return s, nil
	}
	_, err = kafka.ReadSettled(ctx, cfg, topic, 0, s.apply)
	return s, err
}

// A Record is a record to write: its key, and its value before the encoding as JSON. A nil
// value deletes the record of the key.
type Record struct {
	Key   string
	Value any
}

// WriteRecords writes records to the control topic in order, and waits until they are
// acknowledged.
func WriteRecords(ctx context.Context, cfg kafka.Config, topic string, now time.Time, changes ...Record) error {
	records := make([]*pipeline.Record, len(changes))
	for i, c := range changes {
		records[i] = &pipeline.Record{Topic: topic, Key: []byte(c.Key), Time: now}
		if c.Value != nil {
			var err error
			if records[i].Value, err = json.Marshal(c.Value); err != nil {
				return err
			}
		}
	}
	return kafka.WriteOnce(ctx, cfg, records...)
}
