package kafkatest

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// rowsJava reads a compacted topic with Kafka's and Avro's own libraries.
//
//go:embed Rows.java
var rowsJava []byte

// A Row is the newest record of a key, as Java's libraries read it.
type Row struct {
	Key       string // an Avro key as JSON, otherwise the text
	Value     map[string]any
	Partition int
	Records   int // with this key, deletions included
}

// Rows reads the committed rows of a compacted topic in the order of their first records,
// without those that are deleted. It runs Kafka's consumer and Avro's decoder for Java,
// so it shares no code with Millrace. Numbers are of type json.Number.
func (b *Broker) Rows(ctx context.Context, registry, topic string) ([]Row, error) {
	if b.sasl != "" {
		return nil, fmt.Errorf("reading rows is not implemented for a broker with passwords")
	}
	kafka, err := kafkaJars(ctx)
	if err != nil {
		return nil, err
	}
	avro, err := fetched{name: "avro", pom: avroPOM, goal: "copy-dependencies"}.fetch(ctx, "")
	if err != nil {
		return nil, err
	}
	out, err := runJava(ctx, "Rows.java", rowsJava, []string{kafka, avro}, nil, strings.Join(b.brokers, ","), registry, topic)
	if err != nil {
		return nil, fmt.Errorf("reading %s in Java: %w", topic, err)
	}
	var rows []Row
	for line := range strings.Lines(string(out)) {
		row, err := parseRow(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("%w in the row %q", err, line)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// parseRow parses a line of Rows.java.
func parseRow(line string) (row Row, err error) {
	parts := strings.SplitN(line, "\t", 4)
	if len(parts) < 4 {
		return row, fmt.Errorf("%d parts", len(parts))
	}
	row.Key = parts[2]
	if row.Partition, err = strconv.Atoi(parts[0]); err != nil {
		return row, err
	}
	if row.Records, err = strconv.Atoi(parts[1]); err != nil {
		return row, err
	}
	d := json.NewDecoder(strings.NewReader(parts[3]))
	d.UseNumber()
	return row, d.Decode(&row.Value)
}
