package topology

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// A catalog holds the records of the .avsc files.
type catalog struct {
	dir     string                     // name of the directory for messages
	byName  map[string]*codec.Schema   // by full name
	byShort map[string][]*codec.Schema // by name without namespace
	byFile  map[string]*codec.Schema   // by file name without .avsc
	older   map[string]*codec.Schema   // shapes of older writers, by file name without .avsc
	broken  map[string]bool            // files with faults, by file name without .avsc
}

// olderFile matches the file name, without .avsc, of an older shape of a record.
var olderFile = regexp.MustCompile(`\.v[0-9]+$`)

// readSchemas reads the .avsc files of the directory.
func (d *document) readSchemas(files fs.FS, dir string) *catalog {
	if dir == "" {
		dir = "schemas"
	}
	c := &catalog{
		dir: dir, byName: map[string]*codec.Schema{}, byShort: map[string][]*codec.Schema{}, byFile: map[string]*codec.Schema{},
		older: map[string]*codec.Schema{}, broken: map[string]bool{},
	}
	if files == nil {
		return c
	}
	names, err := fs.Glob(files, "*.avsc")
	if err != nil {
		d.faults = append(d.faults, Fault{File: dir, Msg: err.Error()})
	}
	from := map[string]string{}
	for _, name := range names {
		file, base := path.Join(dir, name), strings.TrimSuffix(name, ".avsc")
		fail := func(f Fault) {
			d.faults = append(d.faults, f)
			c.broken[base] = true
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			fail(Fault{File: file, Msg: err.Error()})
			continue
		}
		s, err := codec.ParseSchema(string(text))
		if err == nil {
			_, err = s.Tagged()
		}
		switch {
		case err != nil:
			fail(schemaFault(file, text, err))
		case s.Root().Kind != codec.Record:
			fail(Fault{File: file, Msg: fmt.Sprintf("the schema is %s, not a record", s.Root()), Hint: "a schema file must contain one record"})
		case olderFile.MatchString(base):
			c.older[base] = s
		case c.byName[s.Name()] != nil:
			fail(Fault{
				File: file, Msg: fmt.Sprintf("%s is already defined in %s", s.Name(), path.Join(dir, from[s.Name()])),
				Hint: "rename or remove one of them; keep an older shape in a file such as " + short(s) + ".v1.avsc",
			})
		default:
			from[s.Name()] = name
			c.byName[s.Name()] = s
			c.byShort[short(s)] = append(c.byShort[short(s)], s)
			c.byFile[base] = s
		}
	}
	return c
}

// short returns the name of a schema's record without its namespace.
func short(s *codec.Schema) string { return baseName(s.Name()) }

func baseName(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// find returns the record with a name, short or full. If there is none, it returns a
// message and a hint. The message is empty if the record's file has a fault, which is
// already reported.
func (c *catalog) find(name string) (s *codec.Schema, msg, hint string) {
	if s := c.byName[name]; s != nil {
		return s, "", ""
	}
	switch found := c.byShort[name]; {
	case len(found) == 1:
		return found[0], "", ""
	case len(found) > 1:
		names := make([]string, len(found))
		for i := range found {
			names[i] = found[i].Name()
		}
		return nil, "several schemas are named " + name, "write the full name: " + strings.Join(names, " or ")
	}
	if c.broken[name] || c.broken[baseName(name)] {
		return nil, "", ""
	}
	for _, file := range []string{name, baseName(name)} {
		if s := c.byFile[file]; s != nil {
			return nil, fmt.Sprintf("there is no schema %s: %s.avsc in %s defines the record %s", name, file, c.dir, s.Name()),
				fmt.Sprintf("write %s here, or rename the record in the file", short(s))
		}
	}
	names := slices.Concat(slices.Sorted(maps.Keys(c.byShort)), slices.Sorted(maps.Keys(c.byName)))
	hint = expr.Suggest(name, names)
	if hint == "" {
		hint = c.dir + " contains no usable .avsc file"
		if short := slices.Sorted(maps.Keys(c.byShort)); len(short) > 0 {
			hint = "the schemas there are " + listed(short)
		}
	}
	file := baseName(name)
	if olderFile.MatchString(name) {
		file = name
	}
	return nil, fmt.Sprintf("there is no schema %s in %s (expected file: %s.avsc)", name, c.dir, file), hint
}

// listed joins names for a message, and cuts a long list.
func listed(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}
