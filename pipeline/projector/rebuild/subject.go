package rebuild

import (
	"context"
	"fmt"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// subjectErasure is the result of forget --subject.
type subjectErasure struct {
	Subject string        `json:"subject"`
	DryRun  bool          `json:"dry_run,omitempty"` // nothing was destroyed
	Key     *destroyedKey `json:"key"`
	Left    []remainder   `json:"left"`
}

// forgetSubject destroys the keys of a data subject.
func (o *operator) forgetSubject(ctx context.Context, how forgetFlags) error {
	if !how.dryRun && !how.yes {
		return cli.Usagef("forget makes the encrypted data of the subject %s unreadable permanently: add --yes, or see with --dry-run what it destroys", how.subject)
	}
	w, err := o.remote.Open()
	if err != nil {
		return err
	}
	keys := keyring.Topic(w.Topology)
	switch {
	case keys == nil:
		return cli.Usagef("the topology configures no encryption, so there are no data subjects")
	case how.subject == "":
		return cli.Usagef("--subject is empty: give the id of a data subject")
	}
	if err := w.Kafka.Ping(ctx); err != nil {
		return err
	}
	n, marked, err := countKeys(ctx, w, keys, how.subject)
	if err != nil {
		return err
	}
	if n == 0 && !marked && !how.force {
		return fmt.Errorf("the subject %q has no key on %s; --force forgets the id all the same, so that it never gets one", how.subject, keys.Name)
	}
	x := &subjectErasure{Subject: how.subject, DryRun: how.dryRun, Key: &destroyedKey{keys.Name, n}}
	if !how.dryRun {
		if x.Key, err = destroyKeys(ctx, w, keys, how.subject, o.env.Now()); err != nil {
			return err
		}
	}
	cluster, err := kafka.Describe(ctx, w.Kafka, []string{keys.Name}, nil, nil)
	if err != nil {
		return err
	}
	x.Left = []remainder{
		{"topics, snapshots, stores", "what is encrypted with the key, unreadable", "as long as they keep it"},
		{keys.Name, "the old record of the key, readable with the key-encryption key", compacted(cluster.Topics[keys.Name])},
		{keys.Name, "the id, so that no new key is created", "for ever"},
	}
	for _, pr := range w.Topology.Projections {
		if pr.Subjects {
			x.Left = append(x.Left, remainder{"projection " + pr.Name, "the aggregate with the id, if there is one, with the encrypted fields hidden", "it is forgotten there: projector forget " + pr.Name + " ID"})
		}
	}
	if o.json {
		return cli.PrintJSON(o.env.Stdout, x)
	}
	out := cli.Printer{Out: o.env.Stdout}
	if x.DryRun {
		out.Line("subject %s would be forgotten: %s on %s would be destroyed", x.Subject, cli.Plural(n, "key"), keys.Name)
		out.Line("Data that would remain, and until when:")
	} else {
		out.Line("subject %s is forgotten: %s on %s destroyed; everything encrypted with its key is unreadable, everywhere", x.Subject, cli.Plural(x.Key.Destroyed, "record"), keys.Name)
		out.Line("Remaining data, and until when:")
	}
	return printLeft(o.env.Stdout, x.Left, out.Err)
}

// countKeys returns the number of keys of a subject, and whether it is marked as forgotten.
func countKeys(ctx context.Context, w *worker.Worker, keys *topology.Topic, subject string) (n int, marked bool, err error) {
	cluster, err := kafka.Describe(ctx, w.Kafka, []string{keys.Name}, nil, nil)
	if err != nil || cluster.Topics[keys.Name].Partitions == 0 {
		return 0, false, err
	}
	partition := kafka.PartitionOf([]byte(subject), cluster.Topics[keys.Name].Partitions)
	n, err = keyring.CountKeys(subject, func(f func(*pipeline.Record) error) error {
		_, err := kafka.ReadSettled(ctx, w.Kafka, keys.Name, partition, func(r *pipeline.Record) error {
			if of, isMark := seal.MarkOf(r.Key); isMark && of == subject {
				marked = true
			}
			return f(r)
		})
		return err
	})
	return n, marked, err
}

// destroyKeys marks a subject as forgotten and destroys its keys.
func destroyKeys(ctx context.Context, w *worker.Worker, keys *topology.Topic, subject string, at time.Time) (*destroyedKey, error) {
	cluster, err := kafka.EnsureTopics(ctx, w.Kafka, worker.TopicSpecs(keys), true)
	if err != nil {
		return nil, err
	}
	out, err := kafka.NewWriter(w.Kafka)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	partition := kafka.PartitionOf([]byte(subject), cluster.Topics[keys.Name].Partitions)
	n, err := keyring.DestroyKeys(ctx, out, keys.Name, partition, subject, at, func(f func(*pipeline.Record) error) error {
		_, err := kafka.ReadSettled(ctx, w.Kafka, keys.Name, partition, f)
		return err
	})
	return &destroyedKey{keys.Name, n}, err
}
