/* chart.c - plain shapes and text, no script and no font of its own. */
#include "bench/chart.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { LEFT = 60, TOP = 50, HEIGHT = 240, GAP = 24, BAR = 22, LEGEND_LINE = 18, GRID_LINES = 4 };

static const char *const colours[] = {"#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#9c6b4e"};

static void write_text(FILE *file, const char *text) {
    for (const char *at = text; *at != '\0'; at++) {
        if (*at == '<') fputs("&lt;", file);
        else if (*at == '&') fputs("&amp;", file);
        else fputc(*at, file);
    }
}

static void write_label(FILE *file, double x, double y, const char *anchor, const char *text) {
    fprintf(file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    write_text(file, text);
    fputs("</text>\n", file);
}

static double group_width(const chart *c) {
    return (double)c->series_count * BAR + GAP;
}

static void write_grid(FILE *file, const chart *c, double width) {
    for (int i = 0; i <= GRID_LINES; i++) {
        double y = TOP + HEIGHT - (double)HEIGHT * i / GRID_LINES;
        char value[32];
        snprintf(value, sizeof(value), "%g%s", c->most * i / GRID_LINES, c->unit);
        fprintf(file, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", LEFT, y, width - 10,
                y);
        write_label(file, LEFT - 6, y + 4, "end", value);
    }
}

static void write_bars(FILE *file, const chart *c) {
    for (size_t i = 0; i < c->category_count; i++) {
        double x = LEFT + GAP / 2.0 + (double)i * group_width(c);
        for (size_t k = 0; k < c->series_count; k++) {
            double value = c->values[i * c->series_count + k];
            if (isnan(value)) continue;
            double height = HEIGHT * fmin(value / c->most, 1.0);
            fprintf(file,
                    "<rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" fill=\"%s\"><title>%g%s</title></rect>\n",
                    x + (double)k * BAR, TOP + HEIGHT - height, BAR - 2, height,
                    colours[k % (sizeof(colours) / sizeof(colours[0]))], value, c->unit);
        }
        write_label(file, x + (double)c->series_count * BAR / 2, TOP + HEIGHT + 18, "middle", c->categories[i]);
    }
}

static void write_legend(FILE *file, const chart *c) {
    for (size_t k = 0; k < c->series_count; k++) {
        double y = TOP + HEIGHT + 40 + (double)k * LEGEND_LINE;
        fprintf(file, "<rect x=\"%d\" y=\"%.1f\" width=\"12\" height=\"12\" fill=\"%s\"/>\n", LEFT, y - 10,
                colours[k % (sizeof(colours) / sizeof(colours[0]))]);
        write_label(file, LEFT + 18, y, "start", c->series[k]);
    }
}

hd_status chart_write(const chart *c, const char *path, hd_error *error) {
    FILE *file = fopen(path, "w");
    if (file == NULL) return hd_error_set(error, HD_IO, "cannot write %s: %s", path, strerror(errno));
    double width = fmax(LEFT + (double)c->category_count * group_width(c) + 20, 480);
    double height = TOP + HEIGHT + 50 + (double)c->series_count * LEGEND_LINE;
    fprintf(file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
            "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            width, height);
    write_label(file, LEFT, 26, "start", c->title);
    write_grid(file, c, width);
    write_bars(file, c);
    write_legend(file, c);
    fputs("</svg>\n", file);
    bool has_failed = ferror(file) != 0;
    if (fclose(file) != 0 || has_failed) return hd_error_set(error, HD_IO, "cannot write %s", path);
    return HD_OK;
}
