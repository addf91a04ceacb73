package producer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/topology"
)

// listedLetter is a pending letter, one line of --dry-run --json.
type listedLetter struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Key       string `json:"key"`
	To        string `json:"to"` // source topic
	Pipeline  string `json:"pipeline"`
	Stage     string `json:"stage"`
	Reason    string `json:"reason"`
	Error     string `json:"error"`
	Attempt   int    `json:"attempt"`
	Died      string `json:"died"`            // time of the failure, RFC 3339
	Stays     string `json:"stays,omitempty"` // reason to stay
}

// newListedLetter returns a letter with the text form of its key: the letter has the key
// of the record that failed.
func newListedLetter(t *topology.Topology, r *pipeline.Record, l *deadletter.Letter) listedLetter {
	var keys keyformat.Format
	if from := t.Topic(l.SourceTopic); from != nil {
		keys = from.KeyFormat
	}
	out := listedLetter{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: keys.Show(r.Key), To: l.SourceTopic,
		Pipeline: l.Pipeline, Stage: l.Stage, Reason: string(l.Reason), Error: l.Error, Attempt: l.Attempt,
	}
	if !l.Time.IsZero() {
		out.Died = pipeline.Time(l.Time).String()
	}
	return out
}

// list prints the pending letters.
func (r *redriver) list(ctx context.Context, t *topology.Topology, cfg kafka.Config, pending map[letterPlace]kafka.Bounds) error {
	places := slices.SortedFunc(maps.Keys(pending), func(a, b letterPlace) int {
		if a.topic != b.topic {
			return strings.Compare(a.topic, b.topic)
		}
		return int(a.partition - b.partition)
	})
	table := tabwriter.NewWriter(r.env.Stdout, 0, 0, 2, ' ', 0)
	lines := json.NewEncoder(r.env.Stdout)
	sent, stay := 0, 0
	for _, place := range places {
		err := kafka.ReadRange(ctx, cfg, place.topic, place.partition, pending[place], func(rec *pipeline.Record) error {
			letter := deadletter.Parse(rec)
			l := newListedLetter(t, rec, &letter)
			if l.Stays = r.filter.stays(&letter); l.Stays == "" && r.limit > 0 && sent >= r.limit {
				l.Stays = staysLimit
			}
			if l.Stays == "" {
				sent++
			} else {
				stay++
			}
			if r.asJSON {
				return lines.Encode(l)
			}
			if sent+stay == 1 {
				fmt.Fprintln(table, "LETTER\tKEY\tTO\tSTAGE\tREASON\tATTEMPT\tDIED\tERROR")
			}
			return l.row(table)
		})
		if err != nil {
			return err
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(r.env.Stderr, "%d dead letters are pending for group %s: %d would be sent back, %d would stay\n", sent+stay, r.group, sent, stay)
	return nil
}

// row prints the letter as a row of the table.
func (l *listedLetter) row(table *tabwriter.Writer) error {
	to := l.To
	if l.Stays != "" {
		to = "stays: " + l.Stays
	}
	_, err := fmt.Fprintf(table, "%s/%d/%d\t%s\t%s\t%s/%s\t%s\t%d\t%s\t%s\n", l.Topic, l.Partition, l.Offset,
		cli.Cell(l.Key, 40), cli.Cell(to, 40), cli.Cell(l.Pipeline, 30), cli.Cell(l.Stage, 30), cli.Cell(l.Reason, 30), l.Attempt, cli.Cell(l.Died, 30), cli.Cell(l.Error, 80))
	return err
}
