package chain

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/rows"
	"millrace/pipeline/topology"
)

// maxFileFaults limits the number of reported faults of a file.
const maxFileFaults = 10

// fileReader reads the rows of a file.
type fileReader struct {
	table  *topology.Table
	rows   *rows.Map
	lines  map[string]int // by key: the line of its row
	row    []byte         // buffer
	faults []error
}

// FileRows returns the rows of a table that is a file: CSV with a header (.csv), a JSON
// object on each line (.jsonl), or a JSON array of objects. The error joins up to ten
// faults, each with the file and the line.
func FileRows(t *topology.Table) (*rows.Map, error) {
	f := &fileReader{table: t, rows: rows.New(), lines: map[string]int{}}
	switch text := bytes.TrimPrefix(t.Text, []byte("\ufeff")); {
	case strings.HasSuffix(t.File, ".csv"):
		f.csv(text)
	case strings.HasSuffix(t.File, ".jsonl"):
		f.jsonLines(text)
	default:
		f.json(text)
	}
	if n := len(f.faults); n > maxFileFaults {
		f.faults = append(f.faults[:maxFileFaults], fmt.Errorf("%s: and %d more faults", t.File, n-maxFileFaults))
	}
	return f.rows, errors.Join(f.faults...)
}

func (f *fileReader) fail(line int, format string, args ...any) {
	f.faults = append(f.faults, fmt.Errorf("%s:%d: %w", f.table.File, line, fmt.Errorf(format, args...)))
}

// add adds a row.
func (f *fileReader) add(line int, v any) {
	var err error
	if f.row, err = codec.AppendAvro(f.row[:0], f.table.Schema, v); err != nil {
		f.fail(line, "%w", err)
		return
	}
	key, ok := keyOf(v, f.table.Key)
	if !ok { // the field is missing and has its default, or it is within a null
		f.fail(line, "the row has no %s, the key of the table", f.table.Key)
		return
	}
	if first, twice := f.lines[key]; twice {
		f.fail(line, "duplicate key %q: line %d has it too", key, first)
		return
	}
	f.lines[key] = line
	f.rows.Set([]byte(key), f.row)
}

// keyOf returns the text at a dotted path of a row.
func keyOf(row any, path string) (string, bool) {
	for _, name := range strings.Split(path, ".") {
		record, _ := row.(map[string]any) // a null has no fields
		row = record[name]
	}
	key, ok := row.(string)
	return key, ok
}

func (f *fileReader) jsonLines(text []byte) {
	for line := 1; len(text) > 0; line++ {
		var one []byte
		one, text, _ = bytes.Cut(text, []byte("\n"))
		if one = bytes.TrimSpace(one); len(one) == 0 {
			continue
		}
		var v any
		d := json.NewDecoder(bytes.NewReader(one))
		d.UseNumber()
		err := codec.CheckJSON(one)
		if err == nil {
			err = d.Decode(&v)
		}
		if err == nil && d.More() {
			err = errors.New("more than one value")
		}
		if err != nil {
			f.fail(line, "%w", err)
			continue
		}
		f.add(line, v)
	}
}

func (f *fileReader) json(text []byte) {
	if at, what := codec.InvalidJSON(text); at >= 0 {
		start := 1 + bytes.LastIndexByte(text[:at], '\n')
		f.fail(1+bytes.Count(text[:at], []byte("\n")), "column %d: %s", 1+at-start, what)
		return
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	line := func() int {
		at := int(d.InputOffset())
		at += len(text[at:]) - len(bytes.TrimLeft(text[at:], " \t\r\n,[")) // the start of the next value
		return 1 + bytes.Count(text[:at], []byte("\n"))
	}
	if first, err := d.Token(); err != nil || first != json.Delim('[') {
		f.fail(line(), "expected an array of objects")
		return
	}
	for d.More() {
		at := line()
		var v any
		if err := d.Decode(&v); err != nil {
			f.fail(line(), "%w", err)
			return
		}
		f.add(at, v)
	}
	if _, err := d.Token(); err != nil {
		f.fail(line(), "%w", err)
		return
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		f.fail(line(), "unexpected data after the array")
	}
}

// csv reads CSV. The header names the field of each column; address.city is a field of a
// nested record. A record that can be null is null if all its cells are empty.
func (f *fileReader) csv(text []byte) {
	r := csv.NewReader(bytes.NewReader(text))
	header, err := r.Read()
	if err != nil {
		f.fail(1, "read the header: %w", err)
		return
	}
	columns := make([]column, len(header))
	for i, name := range header {
		if columns[i], err = f.column(name); err != nil {
			f.fail(1, "%w", err)
		}
	}
	if len(f.faults) > 0 {
		return
	}
	for {
		cells, err := r.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		var bad *csv.ParseError
		if errors.As(err, &bad) {
			f.fail(bad.Line, "%w", bad.Err)
			if !errors.Is(err, csv.ErrFieldCount) {
				return
			}
			continue
		}
		line, _ := r.FieldPos(0)
		row := map[string]any{}
		for i := range columns {
			if cells[i] != "" {
				columns[i].put(row, cells[i])
			}
		}
		for i := range columns {
			if cells[i] == "" {
				columns[i].put(row, "")
			}
		}
		f.add(line, row)
	}
}

// column is the field of a CSV column.
type column struct {
	path  []string
	steps []*codec.Field // of the path
	field *codec.Field   // the last one
}

func (f *fileReader) column(name string) (column, error) {
	c := column{path: strings.Split(strings.TrimSpace(name), ".")}
	n := f.table.Schema.Root()
	for _, step := range c.path {
		if n.Kind == codec.Record {
			c.field = n.Field(step)
		} else {
			c.field = nil
		}
		if c.field == nil {
			return c, fmt.Errorf("%s has no field %s", f.table.Schema.Name(), name)
		}
		c.steps = append(c.steps, c.field)
		n = c.field.Type.NotNull()
	}
	return c, nil
}

// put sets the field of a row to a cell. An empty cell is the default of the field; without
// a default, it is null or an empty text. It comes after the cells with a content, because
// it makes no record that can be null.
func (c *column) put(row map[string]any, cell string) {
	node := c.field.Type
	node = node.NotNull()
	var v any
	switch {
	case cell == "" && c.field.HasDefault:
		return
	case cell == "" && node != c.field.Type:
	case node.Kind == codec.String, node.Kind == codec.Enum, node.Kind == codec.Bytes, node.Kind == codec.Fixed:
		v = cell
	default: // a number, a boolean, or other JSON
		d := json.NewDecoder(strings.NewReader(cell))
		d.UseNumber()
		if err := d.Decode(&v); err != nil || d.More() || codec.CheckJSON([]byte(cell)) != nil {
			v = cell // a time, or an invalid value, which add reports
		}
	}
	for i, step := range c.path[:len(c.path)-1] {
		inner, ok := row[step].(map[string]any)
		if around := c.steps[i]; !ok && cell == "" && around.Type.Kind == codec.Union {
			if !around.HasDefault {
				row[step] = nil
			}
			return
		}
		if !ok {
			inner = map[string]any{}
			row[step] = inner
		}
		row = inner
	}
	row[c.path[len(c.path)-1]] = v
}
