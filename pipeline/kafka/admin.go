package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// A TopicSpec declares a topic.
type TopicSpec struct {
	Name        string
	Partitions  int               // 0: any number; the broker's default at creation
	Replication int               // replication factor at creation; 0: the broker's default
	Config      map[string]string // set at creation
}

// TopicInfo describes an existing topic.
type TopicInfo struct {
	Name       string
	ID         string // changes when the topic is deleted and created again
	Partitions int
}

// Cluster is the result of [EnsureTopics].
type Cluster struct {
	ID     string
	Topics map[string]TopicInfo
}

// EnsureTopics checks that the topics exist with the declared number of partitions.
// Another number is a fatal error and is never corrected, because keys move when it
// changes. Missing topics are created if create is set.
func EnsureTopics(ctx context.Context, cfg Config, specs []TopicSpec, create bool) (out Cluster, err error) {
	err = patiently(ctx, cfg, func() error {
		out, err = ensureTopics(ctx, cfg, specs, create)
		return err
	})
	return out, trimDial(err)
}

func ensureTopics(ctx context.Context, cfg Config, specs []TopicSpec, create bool) (_ Cluster, err error) {
	opts, err := cfg.Options()
	if err != nil {
		return Cluster{}, err
	}
	// The client answers from its cache while its metadata is younger than this.
	cl, err := kgo.NewClient(append(opts, kgo.MetadataMinAge(minBackoff))...)
	if err != nil {
		return Cluster{}, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	names := make([]string, len(specs))
	for i, s := range specs {
		names[i] = s.Name
	}
	meta, err := adm.Metadata(ctx, names...)
	if err != nil {
		return Cluster{}, fmt.Errorf("reading topic metadata: %w", cfg.Explain(err))
	}
	var faults []error
	created := false
	for _, s := range specs {
		have := meta.Topics[s.Name]
		switch {
		case errors.Is(have.Err, kerr.UnknownTopicOrPartition) && !create:
			faults = append(faults, pipeline.Fatal("topic %s does not exist: create it with %d partitions, or run without --no-create-topics", s.Name, s.Partitions))
		case errors.Is(have.Err, kerr.UnknownTopicOrPartition):
			if err := createTopic(ctx, adm, s); err != nil {
				faults = append(faults, err)
			}
			created = true
		case have.Err != nil:
			faults = append(faults, fmt.Errorf("topic %s: %w", s.Name, have.Err))
		}
	}
	if created && len(faults) == 0 {
		if meta, err = awaitTopics(ctx, adm, names); err != nil {
			return Cluster{}, err
		}
	}
	out := Cluster{ID: meta.Cluster, Topics: map[string]TopicInfo{}}
	for _, s := range specs {
		have := meta.Topics[s.Name]
		if have.Err != nil {
			continue
		}
		out.Topics[s.Name] = TopicInfo{s.Name, have.ID.String(), len(have.Partitions)}
		if n := len(have.Partitions); s.Partitions > 0 && n != s.Partitions {
			faults = append(faults, pipeline.Fatal("topic %s has %d partitions, but is declared with %d: keys would move; declare it with %d", s.Name, n, s.Partitions, n))
		}
	}
	return out, errors.Join(faults...)
}

func createTopic(ctx context.Context, adm *kadm.Client, s TopicSpec) error {
	partitions, replication, config := s.request()
	_, err := adm.CreateTopic(ctx, partitions, replication, config, s.Name)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) { // another worker may have created it
		return fmt.Errorf("creating topic %s: %w", s.Name, err)
	}
	return nil
}

// awaitTopics waits until the metadata has all topics, with a leader for each
// partition.
func awaitTopics(ctx context.Context, adm *kadm.Client, names []string) (kadm.Metadata, error) {
	for {
		meta, err := adm.Metadata(ctx, names...)
		if err != nil {
			return meta, fmt.Errorf("waiting for the created topics: %w", err)
		}
		missing := slices.ContainsFunc(names, func(n string) bool {
			t := meta.Topics[n]
			return t.Err != nil || slices.ContainsFunc(t.Partitions.Sorted(), func(p kadm.PartitionDetail) bool { return p.Leader < 0 })
		})
		if !missing {
			return meta, nil
		}
		sleep(ctx, minBackoff)
		if err := ctx.Err(); err != nil {
			return meta, fmt.Errorf("waiting for the created topics: %w", err)
		}
	}
}

// Lag returns how many offsets of topics a group has not passed, by [GroupProgress].
func Lag(ctx context.Context, cfg Config, group string, topics ...string) (lag int64, err error) {
	for _, topic := range topics {
		done, total, err := GroupProgress(ctx, cfg, group, topic)
		if err != nil {
			return 0, err
		}
		lag += total - done
	}
	return lag, nil
}
