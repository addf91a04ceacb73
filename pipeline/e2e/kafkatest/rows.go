package kafkatest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	dir, err := os.MkdirTemp("", "millrace-rows-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // best effort
	source := filepath.Join(dir, "Rows.java")
	if err := os.WriteFile(source, rowsJava, 0o600); err != nil {
		return nil, err
	}
	classes := strings.Join([]string{filepath.Join(kafka, "*"), filepath.Join(avro, "*")}, string(os.PathListSeparator))
	cmd := exec.CommandContext(ctx, "java", "-Xmx256m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes, source, strings.Join(b.brokers, ","), registry, topic)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("reading %s in Java: %w\n%s", topic, err, &log)
	}
	var rows []Row
	for line := range strings.Lines(out.String()) {
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
