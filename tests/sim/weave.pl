#!/usr/bin/perl
# Reads the table of guards (`name|file|expression`) and writes every mutant into one tree, so that it is compiled once: a
# function that a guard's expression changes becomes one that asks `crate::mutant()` which of its bodies counts.
#
#   weave.pl FROM TO < table       FROM/file and TO/file; prints "number name" for each guard that was found, and what is
#                                  wrong with the others on standard error
use strict;
use warnings;

my ($from, $to) = @ARGV;
my (%guards, @files, $number, $wrong);
while (my $line = <STDIN>) {
    chomp $line;
    my ($name, $file, $expression) = split /\|/, $line, 3;
    push @files, $file unless $guards{$file};
    push @{ $guards{$file} }, [++$number, $name, $expression];
}

sub slurp { open my $in, '<', $_[0] or die "$_[0]: $!"; local $/; return scalar <$in>; }

# The functions of a file as rustfmt leaves them: [first line, last line, name], and the lines.
sub functions {
    my @lines = split /\n/, $_[0], -1;
    my @found;
    for (my $i = 0; $i < @lines; $i++) {
        next unless $lines[$i] =~ /^(    )?(?:pub(?:\([^)]*\))? )?(?:const )?fn (\w+)/;
        my ($indent, $name, $end) = ($1 // '', $2, $i);
        $end++ until $lines[$end] eq "$indent}";
        push @found, [$i, $end, $name];
        $i = $end;
    }
    return (\@found, \@lines);
}

# At the commas outside of every bracket.
sub parts {
    my ($depth, @parts) = (0, '');
    for my $c (split //, $_[0]) {
        $depth++ if $c =~ /[(\[{<]/;
        $depth-- if $c =~ /[)\]}]/ or ($c eq '>' and $parts[-1] !~ /-$/);
        if ($c eq ',' and !$depth) { push @parts, '' } else { $parts[-1] .= $c }
    }
    return grep { /\S/ } @parts;
}

# A function's head (without the brace), and how one of its bodies is called.
sub taken_apart {
    my ($text, $name) = @_;
    my ($head) = $text =~ /^(.*?) \{\n/s or die "$name: no head";
    my ($arguments) = $head =~ /fn \w+(?:<[^(]*>)?\((.*?)\)(?: -> .*)?$/s or die "$name: no arguments";
    my (@given, $of);
    for (parts($arguments)) {
        s/^\s+//;
        if (/^&?(?:'\w+ )?(?:mut )?self$/) { $of = 'self.' }
        else { my ($pattern) = /^(?:mut )?(.*?):(?!:)/s or die "$name: $_"; push @given, $pattern }
    }
    $of //= $text =~ /^    / ? 'Self::' : '';
    my $call = sub { "$of$_[0](" . join(', ', @given) . ')' };
    # Two bodies have two types where only a trait is named.
    my ($trait) = $head =~ /-> impl (.*)$/s;
    return ($head, $trait ? sub { 'Box::new(' . $call->(@_) . ") as Box<dyn $trait + '_>" } : $call);
}

for my $file (@files) {
    # The tests of a file are no guards, and no expression must match there.
    my ($source, $tests) = split /^(?=#\[cfg\(test\)\]\nmod )/m, slurp("$from/$file"), 2;
    my ($functions, $lines) = functions($source);
    my %bodies;    # of each function: [number, mutated text]
    for my $guard (@{ $guards{$file} }) {
        my ($number, $name, $expression) = @$guard;
        my $mutant = $source;
        eval "\$_ = \$mutant; $expression; \$mutant = \$_; 1" or die "$name: $@";
        my ($others, $changed) = functions($mutant);
        my $hits = 0;
        for my $i (0 .. $#$functions) {
            my $text = sub { my ($f, $l) = @_; join "\n", @$l[$f->[0] .. $f->[1]] };
            my ($was, $is) = ($text->($functions->[$i], $lines), $text->($others->[$i], $changed));
            push(@{ $bodies{$i} }, [$number, $is]), $hits++ if $was ne $is;
        }
        if ($hits) { print "$number $name\n" }
        else { print STDERR "$name: the guard is not where this script looks for it\n"; $wrong = 1 }
    }
    for my $i (sort { $b <=> $a } keys %bodies) {
        my ($first, $last, $name) = @{ $functions->[$i] };
        my $original = join "\n", @$lines[$first .. $last];
        my ($head, $call) = taken_apart($original, $name);
        my ($indent) = $head =~ /^( *)/;
        my $woven = "$head {\n    match crate::mutant() {\n";
        $woven .= "        $_->[0] => " . $call->("${name}__$_->[0]") . ",\n" for @{ $bodies{$i} };
        $woven .= '        _ => ' . $call->("${name}__0") . ",\n    }\n$indent}\n";
        for my $body ([0, $original], @{ $bodies{$i} }) {
            my $copy = $body->[1];
            $copy =~ s/^( *)(?:pub(?:\([^)]*\))? )?(?:const )?fn \w+/$1fn ${name}__$body->[0]/;
            $woven .= "$copy\n";
        }
        splice @$lines, $first, $last - $first + 1, split /\n/, $woven;
    }
    open my $out, '>', "$to/$file.woven" or die "$to/$file: $!";
    print $out join("\n", @$lines), $tests // '';
    close $out;
    rename "$to/$file.woven", "$to/$file" or die "$to/$file: $!";
}
exit($wrong // 0);
