// Package env reads the configuration of the commands from the environment, and
// prints what can be set there.
//
// It stands on envconfig and adds what that does not do: every mistake is reported at
// once and by the variable's name, never with its value; an empty variable counts as
// unset; a value of a field tagged secret:"true" that starts with @ names a file to
// read it from; an app's variables carry its name.
package env

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// Prefix stands before every variable.
const Prefix = "BRIDGE"

// Read fills cfg, a pointer to a struct with envconfig's tags, from variables that
// start with prefix. Fields with required:"true" must not be empty. The error joins one
// line for each mistake.
func Read(prefix string, cfg any) error {
	var errs []error
	for _, f := range fields(prefix, reflect.ValueOf(cfg).Elem()) {
		if err := f.read(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// AppPrefix is what the variables of the app called name start with.
func AppPrefix(name string) string {
	return Prefix + "_APP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

var appName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// Apps reads one T for each app in names and hands it to add. Names are checked, and a
// name that stands twice is a mistake.
func Apps[T any](names []string, add func(name string, app T)) error {
	var errs []error
	seen := make(map[string]bool)
	for _, name := range names {
		switch {
		case !appName.MatchString(name):
			errs = append(errs, fmt.Errorf("BRIDGE_APPS: a name is 1 to 32 of a-z, 0-9 and -, not %q", name))
			continue
		case seen[name]:
			errs = append(errs, fmt.Errorf("BRIDGE_APPS: %q stands there twice", name))
			continue
		}
		seen[name] = true
		var app T
		if err := Read(AppPrefix(name), &app); err != nil {
			errs = append(errs, err)
		}
		add(name, app)
	}
	return errors.Join(errs...)
}

// field is one variable and the place that it fills.
type field struct {
	key   string
	sf    reflect.StructField
	value reflect.Value
}

// fields lists the variables of a struct, its embedded structs and its named ones,
// whose names join the prefix.
func fields(prefix string, v reflect.Value) []field {
	var list []field
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if !sf.IsExported() || sf.Tag.Get("ignored") == "true" {
			continue
		}
		key := prefix
		if !sf.Anonymous {
			key += "_" + strings.ToUpper(variable(sf))
		}
		if sf.Type.Kind() == reflect.Struct {
			list = append(list, fields(key, v.Field(i))...)
			continue
		}
		list = append(list, field{key, sf, v.Field(i)})
	}
	return list
}

var word = regexp.MustCompile(`[A-Z]+[a-z0-9]+|[A-Z]+`)
var acronym = regexp.MustCompile(`^([A-Z]+)([A-Z][a-z].*)$`)

// variable gives the name that envconfig gives to a field: in words with
// split_words:"true", else in one.
func variable(sf reflect.StructField) string {
	if sf.Tag.Get("split_words") != "true" {
		return sf.Name
	}
	var parts []string
	for _, w := range word.FindAllString(sf.Name, -1) {
		if m := acronym.FindStringSubmatch(w); m != nil {
			parts = append(parts, m[1], m[2])
		} else {
			parts = append(parts, w)
		}
	}
	return strings.Join(parts, "_")
}

func (f field) read() error {
	if os.Getenv(f.key) == "" {
		_ = os.Unsetenv(f.key) // an empty variable would switch envconfig's default off
	}
	// envconfig stops at its first mistake, so it gets the fields one at a time, each in
	// a struct of its own.
	one := reflect.New(reflect.StructOf([]reflect.StructField{{
		Name: f.sf.Name, Type: f.sf.Type, Tag: f.sf.Tag,
	}}))
	prefix := strings.TrimSuffix(f.key, "_"+strings.ToUpper(variable(f.sf)))
	if err := envconfig.Process(prefix, one.Interface()); err != nil {
		var parse *envconfig.ParseError
		switch {
		case errors.As(err, &parse): // its text quotes the value
			return fmt.Errorf("%s: is not a valid %s", f.key, typeName(f.sf.Type))
		default:
			return fmt.Errorf("%s: required (%s)", f.key, f.sf.Tag.Get("desc"))
		}
	}
	f.value.Set(one.Elem().Field(0))
	if f.sf.Tag.Get("secret") == "true" {
		return f.readFiles()
	}
	return nil
}

// readFiles replaces every @FILE of a secret by what the file holds, without the line
// break at its end.
func (f field) readFiles() error {
	resolve := func(s string) (string, error) {
		name, ok := strings.CutPrefix(s, "@")
		if !ok {
			return s, nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			var path *os.PathError
			if errors.As(err, &path) {
				err = path.Err
			}
			return "", fmt.Errorf("%s: read the file that it names: %w", f.key, err)
		}
		if s = strings.TrimRight(string(b), "\r\n"); s == "" {
			return "", fmt.Errorf("%s: the file that it names is empty", f.key)
		}
		return s, nil
	}
	if f.value.Kind() == reflect.String {
		s, err := resolve(f.value.String())
		f.value.SetString(s)
		return err
	}
	var all []string
	for i := range f.value.Len() {
		s, err := resolve(f.value.Index(i).String())
		if err != nil {
			return err
		}
		all = append(all, strings.Split(s, ",")...)
	}
	f.value.Set(reflect.ValueOf(all))
	return nil
}

func typeName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration, such as 30s or 1m"
	case t == reflect.TypeFor[slog.Level]():
		return "log level: debug, info, warn or error"
	case t.Kind() == reflect.Bool:
		return "boolean, true or false"
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		return "whole number"
	case t.Kind() == reflect.Slice:
		return "comma-separated list"
	}
	return t.Kind().String()
}

// A Variable is one row of the reference: what can be set, and what it means.
type Variable struct {
	Name, Default, Description string
	Secret                     bool
}

// Variables lists what [Read] with the same arguments reads, in the struct's order.
func Variables(prefix string, cfg any) []Variable {
	var list []Variable
	for _, f := range fields(prefix, reflect.ValueOf(cfg).Elem()) {
		v := Variable{f.key, f.sf.Tag.Get("default"), f.sf.Tag.Get("desc"), f.sf.Tag.Get("secret") == "true"}
		if f.sf.Tag.Get("required") == "true" {
			v.Default = "(required)"
		}
		list = append(list, v)
	}
	return list
}

// Help prints the reference as a table for a terminal.
func Help(w io.Writer, list []Variable) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, v := range list {
		_, _ = fmt.Fprintf(t, "  %s\t%s\t%s\n", v.Name, v.Default, v.Description)
	}
	_ = t.Flush()
}
