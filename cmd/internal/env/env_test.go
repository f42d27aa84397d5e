package env

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

type inner struct {
	URL  string
	NKey string
}

type config struct {
	Nats    inner
	AckWait time.Duration `split_words:"true" default:"30s" desc:"redelivery"`
	Apps    []string      `required:"true" desc:"names"`
	AESKey  []string      `split_words:"true" secret:"true"`
	Secret  string        `secret:"true"`
	Ignored func()        `ignored:"true"`
}

func TestReadFillsEveryField(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("new,old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("T_NATS_URL", "nats://one,nats://two")
	t.Setenv("T_NATS_NKEY", "k")
	t.Setenv("T_ACK_WAIT", "")
	t.Setenv("T_APPS", "demo,ops")
	t.Setenv("T_AES_KEY", "@"+file+",oldest")
	t.Setenv("T_SECRET", "plain")
	var c config
	if err := Read("T", &c); err != nil {
		t.Fatal(err)
	}
	if c.Nats.URL != "nats://one,nats://two" || c.Nats.NKey != "k" {
		t.Errorf("nested: got %+v", c.Nats)
	}
	if c.AckWait != 30*time.Second {
		t.Errorf("an empty variable must leave the default: got %v", c.AckWait)
	}
	if want := []string{"new", "old", "oldest"}; !slices.Equal(c.AESKey, want) {
		t.Errorf("secrets from a file: got %d of them, want %d", len(c.AESKey), len(want))
	}
	if c.Secret != "plain" {
		t.Error("a plain secret was not taken as it is")
	}
}

func TestReadReportsEveryMistakeByNameAndNeverTheValue(t *testing.T) {
	t.Setenv("T_ACK_WAIT", "soon-hunter2")
	t.Setenv("T_APPS", "")
	t.Setenv("T_SECRET", "@/nowhere/hunter2")
	err := Read("T", new(config))
	if err == nil {
		t.Fatal("no error for three mistakes")
	}
	for _, want := range []string{"T_ACK_WAIT", "T_APPS", "T_SECRET"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error quotes a value: %q", err)
	}
}

func TestAppsReadsEachUnderItsName(t *testing.T) {
	type app struct {
		CorpID string `split_words:"true" required:"true"`
	}
	t.Setenv("BRIDGE_APP_HELP_DESK_CORP_ID", "ww1")
	var names, ids []string
	add := func(name string, a app) { names, ids = append(names, name), append(ids, a.CorpID) }
	if err := Apps([]string{"help-desk"}, add); err != nil || !slices.Equal(ids, []string{"ww1"}) {
		t.Errorf("got %v, %v", ids, err)
	}
	err := Apps([]string{"Bad_Name", "help-desk", "help-desk", "other"}, add)
	for _, want := range []string{"twice", "Bad_Name", "BRIDGE_APP_OTHER_CORP_ID"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %s", err, want)
		}
	}
	if want := []string{"help-desk", "help-desk", "other"}; !slices.Equal(names, want) {
		t.Errorf("got the apps %v, want %v", names, want)
	}
}
